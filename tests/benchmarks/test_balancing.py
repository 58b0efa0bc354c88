"""The benchmark commands run, and write rows that say what they measured and where."""

from __future__ import annotations

import json
import re

import jax
import numpy as np
import pytest

from mtmm_jax import balancing
from mtmm_jax.benchmarks.balancing import cost as bench
from mtmm_jax.benchmarks.balancing import pareto
from tests.made_up import packaged

NAMES = ["trunk", "tasks", "method", "engine"]
KEYS = [*NAMES, "step_ms", "relative_to_equal", "extra_mb", "peer"]


def few(path, *more):
    engines = ["--engines", "losses", "representation"]
    return bench.main(["--tasks", "2", "--seconds", "0.01", "--json", str(path), *engines, *more])


@pytest.mark.slow
def test_step_times_as_json(tmp_path, capsys):
    path, picture = tmp_path / "rows.json", tmp_path / "rows.png"
    rows = few(path, "--methods", "equal", "mgda", "--plot", str(picture))
    document = json.loads(path.read_text())
    assert document["rows"] == rows
    assert document["settings"].items() >= {"seconds": 0.01, "chunk": 1}.items()
    machine = document["machine"]
    assert set(machine) == {
        *("processor", "cores", "devices", "python", "jax", "keep_freed_memory")
    }
    assert machine["keep_freed_memory"] is False
    assert all(list(row) == KEYS for row in rows)
    seen = {(row["trunk"], row["method"], row["engine"]) for row in rows}
    assert seen == {
        ("solver", "mgda", "jit"),
        ("mlp", "equal", "losses"),
        ("mlp", "mgda", "representation"),
    }
    assert picture.stat().st_size > 0
    assert "mlp, 2 tasks: 2 to measure: equal, mgda" in capsys.readouterr().out
    assert [file.name for file in sorted(tmp_path.iterdir())] == ["rows.json", "rows.png"]
    with pytest.raises(ValueError, match="did you mean 'mgda'"):
        bench.main(["--methods", "mgd"])


def test_finished_rows_are_kept(tmp_path, capsys, monkeypatch):
    path = tmp_path / "rows.json"
    first = few(path, "--methods", "mgda")
    assert few(path, "--methods", "rlw", "mgda") != first
    again = json.loads(path.read_text())["rows"]
    assert [row for row in again if row["method"] != "rlw"] == first
    assert "mlp, 2 tasks: 1 to measure, 2 kept: rlw" in capsys.readouterr().out
    with monkeypatch.context() as patch:
        patch.setattr(bench, "interleaved", None)  # nothing is left to measure
        assert few(path, "--methods", "mgda", "rlw") == again
    monkeypatch.setattr(bench, "machine", lambda: {"processor": "another"})
    few(path, "--methods", "equal", "--seconds", "0.02")
    assert "other cores, devices, jax, processor, python, settings" in capsys.readouterr().out
    assert [row["method"] for row in json.loads(path.read_text())["rows"]] == ["equal"]
    assert json.loads((tmp_path / "rows.json.old").read_text())["rows"] == again


def test_a_stopped_run_leaves_whole_pairs(tmp_path, monkeypatch):
    path = tmp_path / "rows.json"
    monkeypatch.setattr(bench, "measure_steps", None)
    with pytest.raises(TypeError):
        few(path, "--methods", "mgda")
    assert [row["trunk"] for row in json.loads(path.read_text())["rows"]] == ["solver"]


def test_the_expensive_engine_is_bounded():
    options = bench._options(
        ["--trunk", "resnet", "--tasks", "8", "16", "--methods", "mgda", "moco"]
    )
    at_8 = [("mgda", "representation", None), ("mgda", "full", None), ("moco", "full", None)]
    assert bench.planned("resnet", 8, options) == [bench.EQUAL, *at_8]
    assert bench.planned("resnet", 16, options) == [bench.EQUAL, at_8[0]]
    assert bench.left_out(options) == [
        "left out (--full_tasks 8): engine full, resnet, 16 tasks; no other engine has moco"
    ]
    options.full_tasks = 16
    assert bench.left_out(options) == []


def test_groups_keep_a_method_together():
    names = [(f"m{i}", engine, None) for i in range(7) for engine in ("a", "b", "c")]
    groups = list(bench.grouped(names))
    assert [name for group in groups for name in group] == names
    assert [len(group) for group in groups] == [9, 9, 3]


def test_landscape_and_its_front():
    on_front = pareto.front()
    assert pareto.gap(on_front[50], on_front) == 0
    assert pareto.gap(on_front[50] + 1, on_front) == pytest.approx(1, abs=0.1)
    losses = jax.jit(pareto.losses)
    middle, above = (np.asarray(losses(np.array([0, at], np.float32))) for at in (-8, 9))
    assert pareto.gap(middle, on_front) < 1e-2
    assert pareto.gap(above, on_front) > 1


def test_pareto_rows(tmp_path, capsys):
    path = tmp_path / "rows.json"
    rows = pareto.main(
        ["--quick", "--methods", "mgda", "--json", str(path), "--plot", str(tmp_path / "toy.png")]
    )
    assert len(rows) == 5
    assert all(row["on_front"] for row in rows)
    assert "5 of 5" in capsys.readouterr().out


def test_the_package_docstring_names_every_method():
    """Its example runs in `test_used_alone.py`."""
    named = set(re.findall(r"[a-z_0-9]+", balancing.__doc__))
    assert set(packaged(balancing.METHODS)) <= named
