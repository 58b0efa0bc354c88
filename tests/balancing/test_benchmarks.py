"""The benchmark commands run, and write rows that say what they measured and where."""

from __future__ import annotations

import json
import re
import textwrap

import jax.numpy as jnp
import numpy as np
import pytest

from mtmm_jax import balancing
from mtmm_jax.benchmarks import balancing as bench
from mtmm_jax.benchmarks import pareto


def test_step_times_as_json(tmp_path, capsys):
    path, picture = tmp_path / "rows.json", tmp_path / "rows.png"
    bench.main(
        [
            "--quick",
            "--tasks",
            "2",
            "--methods",
            "equal",
            "mgda",
            "--engines",
            "losses",
            "representation",
            "--json",
            str(path),
            "--plot",
            str(picture),
        ]
    )
    document = json.loads(path.read_text())
    assert set(document["machine"]) == {"processor", "cores", "devices", "python", "jax"}
    keys = {
        "trunk",
        "tasks",
        "method",
        "engine",
        "step_ms",
        "relative_to_equal",
        "extra_mb",
        "peer",
    }
    assert all(set(row) == keys for row in document["rows"])
    seen = {(row["trunk"], row["method"], row["engine"]) for row in document["rows"]}
    assert seen == {
        ("solver", "mgda", "jit"),
        ("mlp", "equal", "losses"),
        ("mlp", "mgda", "representation"),
    }
    assert picture.stat().st_size > 0
    assert "mgda" in capsys.readouterr().out
    with pytest.raises(ValueError, match="did you mean 'mgda'"):
        bench.main(["--methods", "mgd"])


def test_landscape_and_its_front():
    on_front = pareto.front()
    assert pareto.gap(on_front[50], on_front) == 0
    assert pareto.gap(on_front[50] + 1, on_front) == pytest.approx(1, abs=0.1)
    middle = np.asarray(pareto.losses(jnp.asarray([0.0, -8.0])))
    assert pareto.gap(middle, on_front) < 1e-2
    assert pareto.gap(np.asarray(pareto.losses(jnp.asarray([0.0, 9.0]))), on_front) > 1


def test_pareto_rows(tmp_path, capsys):
    path = tmp_path / "rows.json"
    rows = pareto.main(
        ["--quick", "--methods", "mgda", "--json", str(path), "--plot", str(tmp_path / "toy.png")]
    )
    assert len(rows) == 5
    assert all(row["on_front"] for row in rows)
    assert "5 of 5" in capsys.readouterr().out


def test_the_package_docstring_runs():
    code = re.search(r"    import jax, .*?current_weights\(state\)\n", balancing.__doc__, re.DOTALL)
    scope: dict = {}
    exec(textwrap.dedent(code.group()), scope)
    assert scope["weights"].shape == (2,)
    named = set(re.findall(r"[a-z_0-9]+", balancing.__doc__))
    assert set(balancing.METHODS) <= named
