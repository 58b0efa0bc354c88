"""The rows of long benchmarks: kept whole, shared by processes, chosen by name."""

import json
import multiprocessing
import os
import subprocess
import sys

import pytest

from mtmm_jax import training
from mtmm_jax.benchmarks.studies import missing
from mtmm_jax.benchmarks.tables.result_table import Board, arguments, names_of, seeds_of
from mtmm_jax.benchmarks.tables.short_runs import without
from mtmm_jax.registry import ConfigError


def _fill(path, who, together):
    board = Board(path)
    together.wait()
    for seed in range(20):
        board.add({"who": who, "seed": seed})


def test_several_processes_fill_one_file(tmp_path):
    path = str(tmp_path / "new" / "board.json")
    context = multiprocessing.get_context("spawn")
    together = context.Barrier(3)
    workers = [context.Process(target=_fill, args=(path, who, together)) for who in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    board = Board(path)
    assert len(board.rows) == 60
    assert board.left([19, 20], who=2) == [20]
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["board.json"]


def test_what_another_wrote_is_not_left_to_run(tmp_path):
    path = str(tmp_path / "board.json")
    one, other = Board(path), Board(path)
    one.add({"seed": 0})
    assert other.left([0, 1]) == [1]
    other.add({"seed": 1, "new": True}, instead=one.find(seed=0))
    assert json.loads((tmp_path / "board.json").read_text())["rows"] == [{"seed": 1, "new": True}]


def test_names_and_seeds_that_are_none_say_what_may_stand_there():
    assert seeds_of("3,1", quick=True) == [3]
    with pytest.raises(ConfigError, match="--seeds: 'a' is no list"):
        seeds_of("a")
    with pytest.raises(ConfigError, match="--only: unknown row 'b'"):
        names_of("a, 70%,b", ["a, 70%"], "row")
    told = arguments("x", "About.", only="such as 'a, 70%'").format_help()
    assert "such as 'a, 70%'" in told


def test_without_a_modality_go_the_tasks_that_read_it():
    config = training.load("emoji")
    without(config, ["text"])
    assert [name for name, task in config.tasks.items() if task] == [
        "category",
        "subcategory",
        "year",
    ]
    assert config.model.modality_dropout == 0.3
    without(config, ["audio"])
    assert config.model.modality_dropout == 0.0


def test_a_board_is_filled_where_rows_are_missing():
    board, asked = Board(None), []

    def rows(seeds):
        asked.append(seeds)
        return ({"seed": seed, "value": seed * 2} for seed in seeds)

    board.fill("some", {"row": "a"}, [0, 1], rows)
    board.fill("some", {"row": "a"}, [0, 1, 2], rows)
    board.fill("some", {"row": "a"}, [2, 0], rows)
    assert asked == [[0, 1], [2]]
    assert board.rows == [{"row": "a", "seed": seed, "value": seed * 2} for seed in range(3)]


def test_missing_tells_what_each_absence_costs(tmp_path, capsys):
    path = str(tmp_path / "missing.json")
    options = ["--config", "generator", "--task", "synergy", "--seeds", "0", "--json", path]
    options += ["--config.steps=2"]
    assert missing.main([*options, "--ways", "zero", "--only", "dropout"]) == 0
    assert [row["dropout"] for row in Board(path).rows] == [0.3]
    assert missing.main([*options, "--ways", "zero"]) == 0
    rows = Board(path).rows
    assert [row["dropout"] for row in rows[:2]] == [0.3, 0.0]
    names = [row["without"] for row in rows]
    assert names[:2] == [None, None]
    assert set(rows[0]["figures"]) == {"all", *(f"no {name}" for name in names[2:])}
    assert [set(row["figures"]) for row in rows[2:]] == [{f"no {name}"} for name in names[2:]]
    assert missing.main([*options, "--ways", "none"]) == 2
    assert "zero" in capsys.readouterr().err
    assert missing.main([*options, "--only", "heads", "--unimodal", "synergi"]) == 2
    assert "--unimodal: unknown task 'synergi'" in capsys.readouterr().err
    assert missing.main([*options, "--only", "heads"]) == 2
    assert "--unimodal names some" in capsys.readouterr().err


FILLER = """
import os, pathlib, sys, time
from mtmm_jax.benchmarks.board import Board, arguments

options = arguments("filler", "About.", jobs=True).parse_args()
board = Board(options.json)

def rows(seeds):
    time.sleep(0.2)
    if os.environ.get("FAIL") and options.jobs == 1:
        sys.exit(3)
    return [{"seed": seed, "process": os.getpid()} for seed in seeds]

with board.helped("filler", None, options.jobs):
    both = pathlib.Path(options.json + ".both")  # none is done before the other has begun
    both.touch() if options.jobs == 1 else None
    while not both.exists():
        time.sleep(0.1)
    for number in range(10):
        board.fill("", {"number": number}, [0, 1], rows)
print(len(board.rows), len({row["process"] for row in board.rows}))
"""


def _filler(folder, *options, **environ):
    (folder / "filler.py").write_text(FILLER)
    paths = os.pathsep.join([str(folder), *sys.path])
    command = [sys.executable, "-m", "filler", *options]
    env = {**os.environ, "PYTHONPATH": paths, **environ}
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


def test_jobs_share_the_rows_and_none_is_run_twice(tmp_path):
    done = _filler(tmp_path, "--json", str(tmp_path / "rows.json"), "--jobs", "2")
    assert done.stdout.split()[-2:] == ["20", "2"], done.stderr


def test_jobs_that_fail_or_cannot_share_say_so(tmp_path):
    done = _filler(tmp_path, "--json", str(tmp_path / "rows.json"), "--jobs", "2", FAIL="1")
    assert "one of --jobs 2 ended with code 3" in done.stderr
    with (
        pytest.raises(ConfigError, match="--jobs 2: .* give --json"),
        Board(None).helped("x", [], 2),
    ):
        pass
    with pytest.raises(ConfigError, match="--jobs: 0 is below 1"), Board(None).helped("x", [], 0):
        pass
