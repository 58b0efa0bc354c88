"""The comparison of numbers before and after a change sees a leaf, a loss and a NaN that moved."""

import json

import numpy as np
import pytest

from mtmm_jax.benchmarks.reliability import same_numbers
from mtmm_jax.registry import ConfigError

ROW = {"state": {"a": "1f", "b": "2e"}, "losses": [[1.0, float("nan")], [2.0, 0.5]]}


def _losses(scale):
    return {**ROW, "losses": (np.array(ROW["losses"]) * scale).tolist()}


def test_steps_are_read_for_each_config():
    assert same_numbers.runs("emoji:100,digits") == {"emoji": 100, "digits": 2}
    with pytest.raises(ConfigError, match="'many' is not a number of steps"):
        same_numbers.runs("emoji:many")


def test_what_moved_is_named():
    assert same_numbers.difference(ROW, ROW) == ""
    assert same_numbers.difference(ROW, _losses(1 + 1e-8)) == ""
    assert "losses differ by 1.0e-05" in same_numbers.difference(ROW, _losses(1 + 1e-5))
    assert "losses differ by inf" in same_numbers.difference(ROW, _losses(np.nan))
    other = {**ROW, "state": {"a": "1f", "c": "2e"}}
    assert "2 of 3 leaves differ, such as b" in same_numbers.difference(ROW, other)
    assert "[1, 2] and [2, 2]" in same_numbers.difference({**ROW, "losses": [[1, 2]]}, ROW)


def test_a_run_is_itself_and_not_another(tmp_path, capsys):
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    words = ["--configs", "generator:1", "--json"]
    assert same_numbers.main([*words, str(first)]) == 0
    assert same_numbers.main([*words, str(second), "--against", str(first)]) == 0
    assert "1 steps: the same" in capsys.readouterr().out
    rows = json.loads(first.read_text())
    rows["generator"]["losses"][0][0] *= 1.001
    first.write_text(json.dumps(rows))
    assert same_numbers.main([*words, str(second), "--against", str(first)]) == 1
    assert "losses differ by" in capsys.readouterr().out
