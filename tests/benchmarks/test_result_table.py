"""The rows of long benchmarks: kept whole, shared by processes, chosen by name."""

import json
import os
import runpy
import subprocess
import sys

import pytest

from mtmm_jax import training
from mtmm_jax.benchmarks.studies import missing
from mtmm_jax.benchmarks.tables.result_table import Board, arguments, names_of, seeds_of
from mtmm_jax.benchmarks.tables.short_runs import without
from mtmm_jax.registry import ConfigError

WRITER = """
import pathlib, sys, time
from mtmm_jax.benchmarks.tables.result_table import Board

path, who = sys.argv[1], int(sys.argv[2])
board = Board(path)
pathlib.Path(f"{path}.{who}").touch()
while not pathlib.Path(f"{path}.{1 - who}").exists():  # all begin together
    time.sleep(0.01)
for seed in range(30):
    board.add({"who": who, "seed": seed})
"""


def test_several_processes_fill_one_file(tmp_path):
    path = str(tmp_path / "rows.json")
    command = [sys.executable, "-c", WRITER, path]
    writers = [subprocess.Popen([*command, str(who)]) for who in range(2)]
    assert [writer.wait() for writer in writers] == [0, 0]
    board = Board(path)
    assert len(board.rows) == 60
    assert {row["who"] for row in board.rows[:59]} == {0, 1}
    assert board.left([29, 30], who=1) == [30]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["rows.json", "rows.json.0", "rows.json.1"]


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
    text = arguments("x", "About.", only="such as 'a, 70%'").format_help()
    assert "such as 'a, 70%'" in text


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
    small = ("steps=2", "batch_size=4", "model.width=8", "model.fusion=concat")
    options += [f"--config.{change}" for change in (*small, "data.size=(16,8,8)")]
    assert missing.main([*options, "--ways", "zero", "--only", "dropout"]) == 0
    assert [row["dropout"] for row in Board(path).rows] == [0.3]
    assert missing.main([*options, "--ways", "zero"]) == 0
    rows = Board(path).rows
    assert [row["dropout"] for row in rows[:2]] == [0.3, 0.0]
    names = [row["without"] for row in rows]
    assert names[:2] == [None, None]
    assert set(rows[0]["metrics"]) == {"all", *(f"no {name}" for name in names[2:])}
    assert [set(row["metrics"]) for row in rows[2:]] == [{f"no {name}"} for name in names[2:]]
    assert missing.main([*options, "--ways", "none"]) == 2
    assert "zero" in capsys.readouterr().err
    assert missing.main([*options, "--only", "heads", "--unimodal", "synergi"]) == 2
    assert "--unimodal: unknown task 'synergi'" in capsys.readouterr().err
    assert missing.main([*options, "--only", "heads"]) == 2
    assert "--unimodal names some" in capsys.readouterr().err


FILLER = """
import os, pathlib, sys, time
from mtmm_jax.benchmarks.tables.result_table import Board, arguments

def main(argv=None):
    options = arguments("filler", "About.", jobs=True).parse_args(argv)
    board = Board(options.json)

    def rows(seeds):
        time.sleep(0.1)
        if os.environ.get("FAIL") and options.jobs == 1:
            sys.exit(3)
        return [{"seed": seed, "process": os.getpid()} for seed in seeds]

    with board.helped("filler", argv, options.jobs):
        both = pathlib.Path(options.json + ".both")  # none is done before the other has started
        both.touch() if options.jobs == 1 else None
        while not both.exists():
            time.sleep(0.1)
        for number in range(10):
            board.fill("", {"number": number}, [0, 1], rows)
    return board.rows

if __name__ == "__main__":
    main()
"""


def _filler(folder, monkeypatch):
    """Runs the command in this process, which starts another one for `--jobs 2`."""
    (folder / "filler.py").write_text(FILLER)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), *sys.path]))
    rows = runpy.run_path(str(folder / "filler.py"))["main"]
    return rows(["--json", str(folder / "rows.json"), "--jobs", "2"])


def test_jobs_share_the_rows_and_none_is_run_twice(tmp_path, monkeypatch):
    rows = _filler(tmp_path, monkeypatch)
    assert sorted((row["number"], row["seed"]) for row in rows) == [
        (number, seed) for number in range(10) for seed in (0, 1)
    ]
    assert len({row["process"] for row in rows}) == 2


def test_jobs_that_fail_or_cannot_share_say_so(tmp_path, monkeypatch):
    monkeypatch.setenv("FAIL", "1")
    with pytest.raises(RuntimeError, match="one of --jobs 2 ended with code 3"):
        _filler(tmp_path, monkeypatch)
    with (
        pytest.raises(ConfigError, match="--jobs 2: .* give --json"),
        Board(None).helped("x", [], 2),
    ):
        pass
    with pytest.raises(ConfigError, match="--jobs: 0 is below 1"), Board(None).helped("x", [], 0):
        pass
