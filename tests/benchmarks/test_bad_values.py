"""Nonsense in configs is refused in one line; what is no such refusal is found, and ended."""

import collections
import dataclasses
import sys
import time

import pytest

from mtmm_jax.benchmarks.reliability import bad_values
from mtmm_jax.benchmarks.reliability.bad_value_cases import (
    NONSENSE,
    Case,
    cases,
    chosen,
    outside_and_ends,
)
from mtmm_jax.fusion import FUSIONS
from mtmm_jax.ranges import Count, Decay, mismatch
from tests.made_up import packaged

CASE = Case({"data": "generator", "data.rate": -1}, "rate", True, "a number above 0")
REFUSED = {
    "code": 2,
    "error": "error: data.rate: -1 is not a number above 0\n",
    "claimed": False,
    "seconds": 0.1,
    "bytes": 10**8,
}


EARLY = {
    "tasks": "x",
    "tasks.synergy": 3,
    "tasks.synergy.reads": True,
    "tasks.synergy.kind": [1],
    "model.encoders": 3,
    "model.encoders.m1": [3],
    "model.fusion": {},
    "optimizer.inner": [[["x"]]],
    "balancing.wrap": 3,
    "data.in_step": 3,
    "data.workers": "many",
    "data.keep": {"m1": 1},
}
"""Values that code outside the tables touches first."""


def test_some_sixty_values_are_refused_or_taken():
    if packaged(FUSIONS) != FUSIONS:
        pytest.skip("the processes of the harness do not know made-up entries")
    early = [
        Case({"optimizer.kind": "sam", place: value}, place.rsplit(".", 1)[-1], True, "")
        for place, value in EARLY.items()
    ]
    rows = bad_values.run([*chosen(60, seed=3), *early])
    assert [(row["place"], row["value"], row["fault"]) for row in rows if row["fault"]] == []
    found = bad_values.summary(rows)
    assert found["refused"] > 50
    assert found["overrides"] > 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"code": 0, "error": ""}, "was accepted"),
        ({"code": 1, "error": "Traceback\nTypeError: no"}, "exit code 1: TypeError: no"),
        ({"error": "one: rate\ntwo\n"}, "2 lines"),
        ({"error": ""}, "0 lines"),
        ({"error": "error: -1 is not a number\n"}, "does not name 'rate'"),
        ({"claimed": True}, "claimed a workdir"),
        ({"seconds": bad_values.SECONDS + 1}, "took 11.0 s"),
        ({"bytes": bad_values.BYTES + 1}, "took 0.1 s and 4.0 GB"),
        ({"code": None, "error": "no answer"}, "no answer after 0.1 s"),
    ],
)
def test_every_kind_of_fault_is_found(change, message):
    assert bad_values.fault(CASE, REFUSED) is None
    assert message in bad_values.fault(CASE, {**REFUSED, **change})


def test_ends_of_a_range_may_be_taken_or_refused():
    end = dataclasses.replace(CASE, refused=False)
    assert bad_values.fault(end, {**REFUSED, "code": 0, "error": ""}) is None
    assert bad_values.fault(end, {**REFUSED, "error": "error: no memory for it\n"}) is None
    assert "exit code 1" in bad_values.fault(end, {**REFUSED, "code": 1})


def _end(script, **limits):
    watched = bad_values.Watched([sys.executable, "-c", script], **limits)
    started = time.monotonic()
    found = watched.ask(1.0 if not limits else 30.0, path="", overrides=[], workdir="", train=True)
    took = time.monotonic() - started
    ended = watched.process.wait(5)
    watched.close()
    return found, took, ended


def test_a_process_that_hangs_is_ended():
    found, took, ended = _end("import time; time.sleep(60)")
    assert found["code"] is None
    assert 1.0 <= took < 10
    assert ended < 0  # by a signal


def test_a_process_that_swells_is_ended():
    script = "import time; held = b'x' * 4 * 10**8; time.sleep(60)"
    found, took, ended = _end(script, most=2 * 10**8)
    assert found["code"] is None
    assert found["bytes"] > 2 * 10**8
    assert took < 20
    assert ended < 0


def test_values_lie_just_outside_and_at_the_ends():
    assert outside_and_ends(Count) == ([0, 2**31], [1, 2**31 - 1])
    outside, ends = outside_and_ends(Decay | None)
    assert 1.0 in outside
    assert ends == [0.0]
    assert all(mismatch(value, Decay) for value in outside)


def test_every_table_and_section_is_drawn_from_and_each_place_before_any_twice():
    rooms = collections.Counter(case.place.split(".")[0] for case in cases())
    assert set(rooms) >= {"data", "model", "tasks", "balancing", "optimizer", "devices", "semi"}
    assert set(rooms) >= {"relatedness", "teachers", "lora", "quantise", "init_from", "evaluation"}
    places = {"model.missing", "model.align", "model.regularisers", "model.adapters", "data.mixing"}
    places |= {"data.hide", "data.semi", "data.bucket", "data.held_out", "data.mixup"}
    places |= {"optimizer.private", "tasks.more.hide", "devices.timeout", "balancing.wrap"}
    drawn = [case.place for case in cases()]
    assert [p for p in sorted(places) if not any(d.startswith(p) for d in drawn)] == []
    picked = chosen(300, seed=1)
    assert len({(*case.changes, case.key, case.wanted) for case in picked}) == 300
    assert picked == chosen(300, seed=1)
    assert picked != chosen(300, seed=2)


def test_an_override_stands_on_the_command_line_and_not_in_the_file(tmp_path):
    case = dataclasses.replace(CASE, overrides=True)
    assert bad_values.write_config(case, tmp_path / "a.py") == ["--config.data.rate=-1"]
    assert "data.rate" not in (tmp_path / "a.py").read_text()
    assert bad_values.write_config(CASE, tmp_path / "b.py") == []
    assert "data.rate" in (tmp_path / "b.py").read_text()


def test_nonsense_is_of_every_type():
    assert {type(value) for value in NONSENSE} >= {float, bool, type(None), int, str, list, dict}
