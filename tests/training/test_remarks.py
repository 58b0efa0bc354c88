"""Sentences about a run: what they are made of, when they are said, and when not."""

import math

import pytest

from mtmm_jax.training import remarks
from mtmm_jax.training.remarks import Findings, waiting_share

COURSE = {
    "steps": 1000,
    "last_step": 1000,
    "stopped_early": False,
    "best_step": 100,
    "score": "skill",
    "best_score": 0.4,
    "improved_at": 100,
    "evaluations_since": 9,
}


def _said(remark, **changes):
    results = {"training": {**COURSE, **changes}}
    return list(remark(Findings(results, {})))


def test_validation_that_stood_still_is_named_with_its_steps():
    (one,) = _said(remarks.validation_stood_still)
    assert "(skill) stopped improving at step 100 of 1000. More steps would not help" in one
    assert "config.stopping" in one
    assert _said(remarks.validation_stood_still, evaluations_since=2) == []
    assert _said(remarks.validation_stood_still, evaluations_since=0) == []
    assert list(remarks.validation_stood_still(Findings({}, {}))) == []


def test_a_run_that_was_stopped_says_where():
    changes = {"last_step": 400, "stopped_early": True, "evaluations_since": 1}
    (one,) = _said(remarks.validation_stood_still, **changes)
    assert "at step 100 of 400 and training stopped at 400 of 1000" in one
    assert "config.stopping" not in one


def test_a_score_that_never_was_a_number_is_no_improvement_at_step_0():
    (one,) = _said(remarks.validation_stood_still, improved_at=0, best_score=None)
    assert "was never a number" in one
    assert "step 0" not in one


@pytest.mark.parametrize(("share", "said"), [(None, 0), (0.0, 0), (0.1, 0), (0.43, 1), (1.0, 1)])
def test_data_are_the_bottleneck_where_steps_wait(share, said):
    found = list(remarks.waited_for_data(Findings({}, {}, waited=share, advice="pack them")))
    assert len(found) == said
    if said:
        assert f"{share:.0%} of their time: data are the bottleneck: pack them." in found[0]
    for sentence in remarks.waited_for_data(Findings({}, {}, waited=share)):
        assert sentence.endswith("the bottleneck.")


def _results(entry, value=0.7, trivial=None):
    found = {"test": {"t": {"m": value}}, "intervals": {"test": {"t": {"m": entry}}}}
    if trivial is not None:
        found["baselines"] = {"trivial": {"test": {"t": {"m": trivial}}}}
    return found


def _entry(n, low, high):
    return {"n": n, "low": low, "high": high}


@pytest.mark.parametrize(
    ("entry", "trivial", "smaller", "words"),
    [
        (_entry(58, 0.588, 0.814), None, False, "0.700 is of 58 examples only"),
        (_entry(58, 0.588, 0.814), 0.2, False, "0.588 to 0.814, is wider than 0.08"),
        (_entry(9999, 0.69, 0.71), 0.2, False, None),
        (_entry(9999, 0.69, 0.71), 0.95, False, "is wider than 0.005"),  # little room is left
        (_entry(20, 3.0, 5.0), 8.0, True, "is wider than 0.8"),
        (_entry(20, 3.0, 3.5), 8.0, True, None),
        (_entry(20, 3.0, 5.0), None, True, None),  # an error in nobody knows what unit
        (_entry(20, 3.0, 5.0), math.nan, True, None),
        (_entry(0, None, None), None, False, "no example of the test split counts"),
        (_entry(50, None, None), None, False, None),
        (None, None, False, None),
    ],
)
def test_few_examples_are_named_where_the_interval_is_wide(entry, trivial, smaller, words):
    names = frozenset({"t"} if smaller else ())
    found = Findings(_results(entry, trivial=trivial), {"t": "m"}, names)
    said = list(remarks.few_examples(found))
    assert len(said) == (words is not None)
    assert words is None or words in said[0]


def _with_others(value, linear=None, only=(), rows=100, half=0.05, smaller=False):
    """A run of one task and metric with a linear model and single modalities."""
    entry = _entry(100, value - half, value + half)
    results = _results(entry, value)
    if linear is not None:
        results["linear"] = {
            "results": {"test": {"t": {"linear": {"m": linear}, "x": {"m": None}}}}
        }
    results["baselines"] = {f"only {n}": {"test": {"t": {"m": v}}} for n, v in only}
    results["intervals"]["baselines"] = {
        f"only {n}": {"test": {"t": {"m": _entry(rows, None, None)}}} for n, _ in only
    }
    return Findings(results, {"t": "m"}, frozenset({"t"} if smaller else ()))


@pytest.mark.parametrize(
    ("value", "linear", "smaller", "words"),
    [
        (
            0.7,
            0.8,
            False,
            "0.700 is below that of a linear model of fixed features (linear), 0.800",
        ),
        (0.7, 0.74, False, None),  # within half of the interval
        (0.7, 0.6, False, None),
        (0.7, 0.6, True, "0.700 is below"),
        (0.7, 0.8, True, None),
        (0.7, None, False, None),
        (0.7, math.nan, False, None),
        (math.nan, 0.8, False, None),
    ],
)
def test_a_better_linear_model_is_named(value, linear, smaller, words):
    found = _with_others(value, linear, smaller=smaller)
    said = list(remarks.below_the_linear_model(found))
    assert len(said) == (words is not None)
    assert words is None or words in said[0]


def test_a_linear_model_of_other_examples_is_not_compared():
    found = _with_others(0.7, 0.8)
    found.results["linear"]["about"] = {"t": {"linear": {"examples": {"test": 100}}}}
    assert len(list(remarks.below_the_linear_model(found))) == 1
    found.results["linear"]["about"]["t"]["linear"]["examples"]["test"] = 20
    assert list(remarks.below_the_linear_model(found)) == []


@pytest.mark.parametrize(
    ("only", "rows", "words"),
    [
        (
            [("photo", 0.8), ("text", 0.3)],
            100,
            "photo alone has m 0.800, all inputs together 0.700",
        ),
        ([("photo", 0.74), ("text", 0.3)], 100, None),
        ([("photo", 0.8), ("text", 0.3)], 20, None),  # of other examples
        ([("photo", 0.8)], 100, None),  # there are no others that could harm it
        ([], 100, None),
    ],
)
def test_a_better_single_input_is_named_where_it_saw_the_same_examples(only, rows, words):
    said = list(remarks.one_input_is_better(_with_others(0.7, only=only, rows=rows)))
    assert len(said) == (words is not None)
    assert words is None or words in said[0]


def test_results_of_an_earlier_version_have_no_remarks():
    assert remarks.remarks(Findings({"test": {"t": {"m": 0.5}}}, {"t": "m"})) == []


def test_all_remarks_are_said_in_the_order_of_the_list(monkeypatch):
    results = {**_results(_entry(5, 0.1, 0.9)), "training": COURSE}
    found = Findings(results, {"t": "m"}, waited=0.5)
    assert [one.split()[0] for one in remarks.remarks(found)] == ["The", "Steps", "t:"]
    monkeypatch.setattr(remarks, "REMARKS", [lambda found: iter(("new",)), *remarks.REMARKS])
    assert remarks.remarks(found)[0] == "new"


def _log(step, wait, speed=10.0, epoch=2.0, split="train"):
    record = {"step": step, "split": split, "epoch": epoch}
    return record | {"steps_per_second": speed, "data_wait": wait}


@pytest.mark.parametrize(
    ("records", "share"),
    [
        ([], None),
        ([_log(10, 0.9)], None),  # the step compiles
        ([_log(10, 0.9), _log(20, 0.2)], 0.2),
        ([_log(10, 0.9), _log(20, 0.2), _log(50, 0.6)], (1 * 0.2 + 3 * 0.6) / 4),
        ([_log(10, 0.9), _log(20, 0.2), _log(30, 0.6, speed=5.0)], (1 * 0.2 + 2 * 0.6) / 3),
        ([_log(10, 0.9), _log(20, 0.8, epoch=0.5), _log(30, 0.1)], 0.1),
        ([_log(10, 0.9), _log(20, 0.8, epoch=0.5)], 0.8),
        ([_log(10, 0.9), _log(20, 0.8, epoch=[3.0, 0.5]), _log(30, 0.1, epoch=[4.0, 1.0])], 0.1),
        ([_log(10, 0.9), {"step": 10, "split": "validation"}, _log(20, 0.2)], 0.2),
        ([_log(10, 0.9), _log(20, 0.3, speed=0.0), _log(30, 0.2)], 0.2),
    ],
)
def test_the_share_of_waiting_is_by_time_after_the_first_epoch(records, share):
    found = waiting_share(records)
    assert found is None if share is None else found == pytest.approx(share)
