"""Intervals of metrics: against SciPy's, and by how often they hold the truth."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
from scipy import stats

from mtmm_jax.evaluation import Evaluator, certainty, trivial_states
from mtmm_jax.evaluation.split import EXAMPLES, compute
from mtmm_jax.tasks.metrics import intervals, monoids
from tests import toy


@pytest.mark.parametrize(("hits", "count"), [(0, 1), (1, 1), (0, 20), (20, 20), (7, 9), (130, 999)])
def test_shares_have_wilsons_interval(hits, count):
    expected = stats.binomtest(hits, count).proportion_ci(0.95, method="wilson")
    found = intervals.wilson(hits, count)
    np.testing.assert_allclose(found[:2], [expected.low, expected.high], atol=1e-12)
    assert found.method == "wilson"


def test_means_have_students_interval():
    x = np.random.default_rng(0).gamma(2.0, 3.0, 17)
    expected = stats.t.interval(0.95, 16, x.mean(), stats.sem(x))
    found = intervals.of_mean(x.sum(), (x**2).sum(), 17)
    np.testing.assert_allclose(found[:2], expected, rtol=1e-10)
    assert intervals.of_mean(x.sum(), (x**2).sum(), 17, low=4, high=5)[:2] == (4, 5)


@pytest.mark.parametrize(
    "found",
    [
        intervals.wilson(0, 0),
        intervals.of_mean(1.0, 1.0, 1),
        intervals.of_mean(np.nan, np.nan, 5),
        intervals.of_mean(np.inf, np.inf, 5),
        intervals.of_skewed_mean(np.nan, 1.0, 5),
        intervals.of_skewed_mean(1e-300, 1.0, 5),
        intervals.of_ratio(np.ones(1), np.ones(1)),
        intervals.of_ratio(np.ones(3), np.zeros(3)),
        intervals.of_rows(lambda rows: {"m": 0.0}, 1),
        intervals.of_rows(lambda rows: {"m": 0.0}, intervals.MOST_VALUES + 1),
        intervals.of_rows(lambda rows: {"m": 0.0}, 1000, width=51),
        intervals.of_counts(lambda table: {"m": 0.0}, np.zeros((2, 2))),
        intervals.of_counts(lambda table: {"m": 0.0}, np.eye(1)),
        intervals.only(intervals.of_rows(lambda rows: {"m": np.nan}, 9), "m")["m"],
        intervals.transformed("no example", np.exp),
    ],
)
def test_without_enough_there_is_a_reason(found):
    assert isinstance(found, str)
    assert " " in found


def test_resamples_of_counts_are_those_of_the_examples():
    """Of 80 pairs of classes, and always the same ones."""
    draw = np.random.default_rng(1)
    true = draw.integers(0, 3, 80)
    said = np.where(draw.random(80) < 0.6, true, draw.integers(0, 3, 80))

    def table(rows):
        counts = np.zeros((3, 3))
        np.add.at(counts, (true[rows], said[rows]), 1)
        return counts

    compute_ = monoids.confusion(3).compute
    by_rows = intervals.of_rows(lambda rows: compute_(table(rows)), 80)
    by_counts = intervals.of_counts(compute_, table(np.arange(80)))
    for name in ("accuracy", "macro_f1"):
        np.testing.assert_allclose(by_rows[name][:2], by_counts[name][:2], atol=0.02)
    np.testing.assert_allclose(
        by_counts["accuracy"][:2], intervals.wilson((true == said).sum(), 80)[:2], atol=0.02
    )
    assert by_counts == intervals.of_counts(compute_, table(np.arange(80)))


def _numbers(draw, count, noise):
    """Labels of a skewed distribution, and predictions whose errors grow with them."""
    y = draw.gamma(3.0, 2.0, count)
    return y, y + noise * (0.3 + 0.2 * y) * draw.standard_normal(count)


def _held(truth, found):
    return np.mean([one.low <= truth <= one.high for one in found])


def test_intervals_of_errors_hold_the_truth_as_often_as_they_promise():
    """400 samples of 60 rows each; the slack is that of 400, and of skewed labels."""
    draw, metric = np.random.default_rng(0), monoids.regression_errors(6.0, 3.0)

    def state(count):
        y, said = _numbers(draw, count, 1.0)
        labels = SimpleNamespace(y=y.astype(np.float32), weight=np.ones(count, np.float32))
        return metric.update(((said - 6.0) / 3.0).astype(np.float32), labels)

    truth = metric.compute(state(400_000))
    update = [jax.device_get(state(60)) for _ in range(400)]
    found = [metric.intervals(one) for one in update]
    for name, value in truth.items():
        assert 0.87 < _held(value, [one[name] for one in found]) < 0.985, name


def test_the_interval_of_r2_is_that_of_a_bootstrap():
    draw, metric = np.random.default_rng(3), monoids.regression_errors(0.0, 1.0)
    y, said = _numbers(draw, 500, 0.7)

    def state(rows):
        labels = SimpleNamespace(y=y[rows], weight=np.ones(len(rows)))
        return jax.device_get(metric.update(said[rows], labels))

    with jax.enable_x64():
        normal = metric.intervals(state(np.arange(500)))["r2"]
        resampled = intervals.of_rows(lambda rows: metric.compute(state(rows)), 500)["r2"]
    width = resampled.high - resampled.low
    np.testing.assert_allclose(normal[:2], resampled[:2], atol=0.15 * width)


def test_ratios_hold_the_truth_as_often_as_they_promise():
    draw = np.random.default_rng(0)

    def sample(count):
        lengths = draw.integers(1, 30, count)
        return draw.binomial(lengths, 0.2).astype(float), lengths.astype(float)

    found = [intervals.of_ratio(*sample(50)) for _ in range(400)]
    assert 0.91 < _held(0.2, found) < 0.985


def test_every_metric_of_a_split_says_of_how_many_examples_it_is():
    model = toy.build()
    variables = jax.tree.map(lambda x: np.full(x.shape, 0.1, x.dtype), model.shapes)
    batches = [toy.batch(8, seed) for seed in (0, 1)]
    evaluator = Evaluator(model)
    states = evaluator.states(variables, batches)
    found, values = certainty(model, states), compute(model, states)
    assert {task: set(own) for task, own in found.items()} == {
        task: set(own) for task, own in values.items()
    }
    for name, task in model.tasks.items():
        expected = sum(_counted(model, task, batch) for batch in batches)
        assert {entry["n"] for entry in found[name].values()} == {expected}
        for entry in found[name].values():
            assert ("why" in entry) == (entry["low"] is None)
            assert ("method" in entry) == (entry["high"] is not None)
    assert found["kind"]["accuracy"]["method"] == "wilson"
    constant = trivial_states(model, batches)
    assert constant[EXAMPLES] == states[EXAMPLES]
    nothing = evaluator.states(variables, batches, only=[])
    for own in certainty(model, nothing).values():
        assert all(entry == {"n": 0, "low": None, "high": None, "why": "no example"}
                   for entry in own.values())  # fmt: skip


def _counted(model, task, batch):
    """By hand: the label is there, and something of each read."""
    rows = np.asarray(batch["weight"]) > 0
    for read in task.reads:
        names = tuple(model.encoders) if read == "fused" else read.split("+")
        rows = rows & np.any([batch["inputs"][name]["present"] for name in names], axis=0)
    if task.target is not None:
        rows = rows & batch["targets"][task.target]["present"]
    return int(rows.sum())
