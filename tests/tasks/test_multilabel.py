"""Labels of which any number hold: loss and metrics equal outside ones, holes reach nothing."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from sklearn import metrics as oracle

from mtmm_jax import heads, registry
from mtmm_jax.batch import Spec, Target
from mtmm_jax.evaluation import Evaluator, trivial_results
from mtmm_jax.registry import ConfigError
from mtmm_jax.tasks import TASKS
from mtmm_jax.tasks.metrics import monoids as metrics
from mtmm_jax.tasks.task import Labels
from tests import toy
from tests.tasks.measured import cost, labels_of, loss_and_gradient, measure, state

CLASSES = ("comedy", "drama", "horror", "western")
FREQUENCIES = (0.4, 0.5, 0.1, 0.05)
RNG = np.random.default_rng(0)
AVERAGE_PRECISION = metrics.average_precision()


def make_head(config, *, where, **context):
    return registry.build(heads.HEADS, config, where=where, **context)


def build(frequencies=FREQUENCIES, **options):
    spec = Spec(toy.SPEC.modalities, {"genres": Target("labels", CLASSES, frequencies=frequencies)})
    options = {"reads": ("fused",), **options, "kind": "multilabel"}
    given = {"where": "tasks.genres", "make_head": make_head, "reads": options.pop("reads")}
    return registry.build(TASKS, options, "genres", spec, **given)


def model(**options):
    """A whole model, of one encoder, whose only task this is."""
    task = build(**options)
    encoders = {"text": toy.MODEL["encoders"]["text"]}
    spec = Spec(toy.SPEC.modalities, {"genres": Target("labels", CLASSES)})
    return dataclasses.replace(
        toy.build({"kind": "classification"}, encoders=encoders), spec=spec, tasks={"genres": task}
    )


def batch(size=8, seed=0):
    """A toy batch; the labels of a third of the rows are missing, as NaN."""
    rng = np.random.default_rng(seed)
    y = (rng.random((size, 4)) < 0.4).astype(np.float32)
    present = np.arange(size) % 3 != 1
    y[~present] = np.nan
    return {**toy.batch(size, seed), "targets": {"genres": {"y": y, "present": present}}}


@functools.cache
def labels(size=8, seed=0):
    return labels_of(model(), batch(size, seed))["genres"]


def logits(size=8, seed=0):
    return np.random.default_rng(seed).standard_normal((size, 4)).astype(np.float32)


def full(y, weight=None):
    """Labels of rows that all count, or weigh as given."""
    weight = np.ones(len(y)) if weight is None else weight
    return Labels(np.asarray(y, np.float32), np.asarray(weight, np.float32))


def metric_values(metric, prediction, given):
    return metric.compute(state(metric, prediction, given))


@functools.cache
def built():
    return build()


def test_the_loss_is_the_mean_over_classes():
    y = (RNG.random((8, 4)) < 0.5).astype(np.float32)
    total, count = cost(built(), logits(), full(y))
    p = 1 / (1 + np.exp(-logits().astype(np.float64)))
    expected = -(y * np.log(p) + (1 - y) * np.log(1 - p)).mean(1).sum()
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    assert count == 8


@pytest.mark.parametrize("weight", [3.0, [1.0, 2.0, 5.0, 0.5], "balanced"])
def test_positives_weigh_as_asked(weight):
    y = (RNG.random((8, 4)) < 0.5).astype(np.float32)
    f = np.array(FREQUENCIES)
    w = (1 - f) / f if weight == "balanced" else weight
    p = 1 / (1 + np.exp(-logits().astype(np.float64)))
    expected = -(w * y * np.log(p) + (1 - y) * np.log(1 - p)).mean(1).sum()
    total = loss_and_gradient(build(pos_weight=weight), logits(), full(y))[0][0]
    np.testing.assert_allclose(total, expected, rtol=1e-5)


def test_rows_that_do_not_count_add_nothing_and_have_no_gradient():
    task, given = built(), labels()
    keep = np.asarray(given.weight) > 0
    assert 0 < keep.sum() < 8
    assert np.isnan(np.asarray(given.y)[~keep]).any()
    (total, count), grads, states = measure(task, logits(), given)
    (expected, _), _, alone = measure(task, logits()[keep], full(given.y[keep]))
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    assert float(count) == keep.sum()
    assert np.isfinite(grads).all()
    assert not grads[~keep].any()
    assert grads[keep].all()
    for name, metric in task.metrics.items():
        found = metric.compute(states[name])
        assert found == pytest.approx(metric.compute(alone[name]), rel=1e-5)


def test_without_any_label_nothing_is_counted():
    task = built()
    nothing = np.zeros(8, np.float32)
    for y in (np.full((8, 4), np.nan, np.float32), None):
        total, _, states = measure(task, logits(), Labels(y, nothing))
        assert total == (0, 0)
        for name, metric in task.metrics.items():
            assert all(np.isnan(v) for v in metric.compute(states[name]).values())


def test_metrics_of_unequal_parts_merge_into_the_whole():
    task, given, z = built(), labels(), logits()
    rows = slice(0, 2), slice(2, 3), slice(3, 8)
    parts = [measure(task, z[r], Labels(given.y[r], given.weight[r]))[2] for r in rows]
    whole = measure(task, z, given)[2]
    for name, metric in task.metrics.items():
        one, two, three = (part[name] for part in parts)
        expected = metric.compute(whole[name])
        left = metric.compute(metric.merge(metric.merge(one, two), three))
        right = metric.compute(metric.merge(one, metric.merge(two, three)))
        assert left == pytest.approx(expected, rel=1e-5)
        assert right == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("levels", [1000, 4])
@pytest.mark.parametrize("weighted", [False, True])
def test_average_precision_is_sklearns_ties_and_weights_included(levels, weighted):
    y = (RNG.random((60, 4)) < FREQUENCIES).astype(np.float32)
    y[0] = 1
    z = RNG.integers(0, levels, (60, 4)).astype(np.float32)
    weight = RNG.random(60) if weighted else np.ones(60)
    found = metric_values(AVERAGE_PRECISION, z, full(y, weight))["average_precision"]
    expected = oracle.average_precision_score(y, z, average="macro", sample_weight=weight)
    assert found == pytest.approx(expected)


def test_a_class_without_a_positive_is_left_out_of_average_precision():
    y = (RNG.random((60, 4)) < 0.5).astype(np.float32)
    y[:, 2] = 0
    z = RNG.standard_normal((60, 4)).astype(np.float32)
    found = metric_values(AVERAGE_PRECISION, z, full(y))["average_precision"]
    others = [0, 1, 3]
    assert found == pytest.approx(oracle.average_precision_score(y[:, others], z[:, others]))


@pytest.mark.parametrize("threshold", [0.5, 0.3, "prior"])
def test_f1_is_sklearns(threshold):
    y = (RNG.random((50, 4)) < 0.4).astype(np.float32)
    z = RNG.standard_normal((50, 4)).astype(np.float32)
    cut = np.array(FREQUENCIES) if threshold == "prior" else threshold
    said = 1 / (1 + np.exp(-z.astype(np.float64))) > cut
    found = metric_values(build(threshold=threshold).metrics["f1"], z, full(y))
    for average in ("micro", "macro"):
        expected = oracle.f1_score(y, said, average=average)
        assert found[f"{average}_f1"] == pytest.approx(expected)


def test_decoding_lists_what_is_above_the_threshold_likeliest_first():
    z = np.array([0.1, -0.2, 3.0, -9.0], np.float32)
    answer = build().decode(z)
    assert answer["prediction"] == ["horror", "comedy"]
    assert list(answer["best"]) == ["horror", "comedy", "drama", "western"]
    assert answer["best"]["comedy"] == pytest.approx(1 / (1 + np.exp(-0.1)))
    assert build(threshold=0.9).decode(z)["prediction"] == ["horror"]
    low = build(threshold="prior").decode(np.full(4, -1.0, np.float32))  # .27 each
    assert low["prediction"] == ["horror", "western"]


def test_the_trivial_prediction_says_the_frequencies():
    p = 1 / (1 + np.exp(-build().trivial.astype(np.float64)))
    np.testing.assert_allclose(p, FREQUENCIES, rtol=1e-5)
    assert not build(frequencies=()).trivial.any()
    assert np.isfinite(build(frequencies=(0.0, 1.0, 0.5, 0.5)).trivial).all()


@pytest.mark.parametrize("weight", [1.0, "balanced", 4.0])
def test_a_prior_bias_starts_where_no_constant_is_better(weight):
    with_bias, without = (model(prior_bias=on, pos_weight=weight) for on in (True, False))
    rows = toy.batch(holes=False)
    variables = toy.variables(without, rows)
    shapes = jax.eval_shape(with_bias.init, jax.random.key(0), rows)
    assert jax.tree.structure(shapes) == jax.tree.structure(variables)
    assert {"norm", "out"} == set(variables["params"]["heads"]["genres"])
    said = jax.jit(lambda inputs: [m(variables, inputs)[0]["genres"] for m in (with_bias, without)])
    shifted, plain = said(rows["inputs"])
    bias = np.asarray(shifted - plain)
    np.testing.assert_allclose(bias - bias[0], 0, atol=1e-5)
    y = (np.arange(200)[:, None] < 200 * np.array(FREQUENCIES)).astype(np.float32)
    task = without.tasks["genres"]
    slope = loss_and_gradient(task, np.tile(bias[0], (200, 1)), full(y))[1].sum(0)
    np.testing.assert_allclose(slope, 0, atol=1e-3)


def test_it_is_evaluated_like_any_other_task():
    whole = model(prior_bias=True)
    batches = [batch(8, seed) for seed in range(3)]
    variables = toy.variables(whole, batches[0])
    results = Evaluator(whole).results(variables, batches)
    assert set(results["genres"]) == {
        "average_precision",
        "micro_f1",
        "macro_f1",
        "exact_match",
        "label_accuracy",
    }
    assert whole.tasks["genres"].headline in results["genres"]
    assert all(0 <= value <= 1 for value in results["genres"].values())
    kept = [b["targets"]["genres"]["present"] & b["inputs"]["text"]["present"] for b in batches]
    y = np.concatenate([b["targets"]["genres"]["y"][k] for b, k in zip(batches, kept, strict=True)])
    trivial = trivial_results(whole, batches)["genres"]
    assert trivial["average_precision"] == pytest.approx(y.mean(0).mean(), rel=1e-5)
    predict = jax.jit(lambda inputs: whole(variables, inputs)[0]["genres"])
    z = np.concatenate([predict(b["inputs"])[k] for b, k in zip(batches, kept, strict=True)])
    expected = oracle.average_precision_score(y, z)
    assert results["genres"]["average_precision"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"pos_weight": "heavy"}, "tasks.genres.pos_weight: 'heavy' is not one of 'balanced'"),
        ({"pos_weight": [1.0, 2.0]}, r"pos_weight: \[1.0, 2.0\] are 2 weights for 4 classes"),
        ({"pos_weight": 0.0}, "tasks.genres.pos_weight: 0.0 is not .* a number above 0"),
        ({"pos_weight": [[1.0], 2.0]}, r"pos_weight\[0\]: \[1.0\] is not a number above 0"),
        ({"threshold": 1.5}, "tasks.genres.threshold: 1.5 is not one of 'prior', or a number"),
        ({"threshold": "best"}, "tasks.genres.threshold: 'best' is not one of 'prior'"),
        ({"threshold": "prior", "frequencies": ()}, "threshold: 'prior' needs the classes' freq"),
        ({"pos_weight": "balanced", "frequencies": ()}, "'balanced' needs the classes'"),
        ({"prior_bias": True, "frequencies": ()}, "tasks.genres.prior_bias: True needs"),
        ({"target": "year"}, "no label 'year'; labels of kind 'labels': genres"),
    ],
)
def test_refusals(options, said):
    with pytest.raises(ConfigError, match=said):
        build(**options)
