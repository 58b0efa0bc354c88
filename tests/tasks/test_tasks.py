"""Losses count only what is there; metrics are monoids and equal independent computations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics as oracle

from mtmm_jax.batch import Tokens
from mtmm_jax.heads.embedding import Embedding
from mtmm_jax.registry import ConfigError
from mtmm_jax.tasks.metrics import monoids as metrics
from mtmm_jax.tasks.task import Labels, parse_reads
from tests import toy
from tests.tasks.measured import cost, labels_of, measure, metric_values, rows_of, state

MODEL = toy.build()
RNG = np.random.default_rng(0)
ERRORS = metrics.regression_errors(2015.0, 4.0)
RANKS = metrics.retrieval_ranks("a", "b", ks=(1, 3))


def full(y, weight=None):
    """Labels of rows that all count, or weigh as given."""
    weight = np.ones(len(y)) if weight is None else weight
    return Labels(y, np.asarray(weight, np.float32))


def _prediction(name, size, seed=0):
    rng = np.random.default_rng(seed)
    if name == "pairs":
        vectors = {r: rng.standard_normal((size, 8)).astype(np.float32) for r in ("image", "text")}
        unit = {r: v / np.linalg.norm(v, axis=1, keepdims=True) for r, v in vectors.items()}
        return {"vectors": unit, "scale": np.float32(5.0)}
    return rng.standard_normal((size, {"kind": 3, "size": 1}[name])).astype(np.float32)


@functools.cache
def _labels_of_all():
    return labels_of(MODEL, toy.batch(8, 0))


def _labels(name):
    return _labels_of_all()[name]


def _some(name, rows):
    """Some rows of a task's prediction and labels."""
    given = _labels(name)
    parts = (None if x is None else x[rows] for x in (given.y, given.weight, given.id))
    return rows_of(_prediction(name, 8), rows), Labels(*parts)


@pytest.mark.parametrize("name", MODEL.tasks)
def test_only_the_rows_that_count_do(name):
    task, labels = MODEL.tasks[name], _labels(name)
    keep = np.asarray(labels.weight) > 0
    assert 0 < keep.sum() < 8
    (total, count), grads, _ = measure(task, _prediction(name, 8), labels)
    expected, expected_count = cost(task, *_some(name, keep))
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    assert float(count) == float(expected_count) == keep.sum()
    for leaf in jax.tree.leaves(grads):
        assert np.isfinite(leaf).all()
        if leaf.ndim:
            assert not leaf[~keep].any()


@pytest.mark.parametrize("name", MODEL.tasks)
def test_a_task_without_any_label_counts_nothing(name):
    task, labels = MODEL.tasks[name], _labels(name)
    nothing = Labels(labels.y, np.zeros(8, np.float32), labels.id)
    (total, count), _, _ = measure(task, _prediction(name, 8), nothing)
    assert total == 0
    assert count == 0
    assert all(
        np.isnan(value) for value in metric_values(task, _prediction(name, 8), nothing).values()
    )


@pytest.mark.parametrize("name", MODEL.tasks)
def test_metrics_of_two_halves_merge_into_the_whole(name):
    task = MODEL.tasks[name]
    whole = measure(task, _prediction(name, 8), _labels(name))[2]
    parts = [measure(task, *_some(name, rows))[2] for rows in (slice(0, 4), slice(4, 8))]
    for key, metric in task.metrics.items():
        merged = metric.compute(metric.merge(*(part[key] for part in parts)))
        assert merged == pytest.approx(metric.compute(whole[key]), rel=1e-5)


def _log_softmax(logits):
    return logits - np.log(np.exp(logits.astype(np.float64)).sum(-1, keepdims=True))


def _smoothed_cross_entropy(logits, targets, smoothing):
    smooth = (1 - smoothing) * targets + smoothing / targets.shape[-1]
    return -(smooth * _log_softmax(logits)).sum(-1)


def test_cross_entropy_with_smoothing_is_its_formula():
    task = toy.build({"kind": {"kind": "classification", "label_smoothing": 0.1}}).tasks["kind"]
    logits, y = _prediction("kind", 8), RNG.integers(0, 3, 8)
    total, _ = cost(task, logits, full(y))
    expected = _smoothed_cross_entropy(logits, np.eye(3)[y], 0.1).sum()
    np.testing.assert_allclose(total, expected, rtol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_probability_per_class_is_a_label_too(smoothing):
    config = {"kind": "classification", "label_smoothing": smoothing}
    task, logits = toy.build({"kind": config}).tasks["kind"], _prediction("kind", 8)
    soft = np.random.default_rng(1).dirichlet(np.ones(3), 8).astype(np.float32)
    weight = np.array([1.0, 0.0] * 4, np.float32)
    expected = _smoothed_cross_entropy(logits, soft, smoothing)
    soft[1::2] = np.nan  # of rows that do not count
    labels = Labels(soft, weight)
    (total, count), gradient, states = measure(task, logits, labels)
    np.testing.assert_allclose(total, expected[::2].sum(), rtol=1e-5)
    assert count == 4
    assert np.isfinite(gradient).all()
    assert not gradient[1::2].any()
    y = np.nan_to_num(soft).argmax(1).astype(np.int32)
    hard = measure(task, logits, Labels(y, weight))
    sharp = measure(task, logits, Labels(np.eye(3, dtype=np.float32)[y], weight))
    np.testing.assert_allclose(hard[0], sharp[0], rtol=1e-5)
    for name, wanted in hard[2].items():
        # Calibration scores against the probabilities themselves; the others see the likeliest.
        for got in (sharp[2],) if name == "calibration" else (states, sharp[2]):
            jax.tree.map(np.testing.assert_array_equal, got[name], wanted)


def test_classification_figures_are_sklearns():
    y, logits = RNG.integers(0, 5, 60), RNG.standard_normal((60, 5)).astype(np.float32)
    labels = full(y)
    metric = metrics.confusion(5)
    found = metric.compute(state(metric, logits, labels))
    assert found["accuracy"] == pytest.approx(oracle.accuracy_score(y, logits.argmax(1)))
    expected = oracle.f1_score(y, logits.argmax(1), average="macro")
    assert found["macro_f1"] == pytest.approx(expected)
    top = metrics.top(2)
    share = top.compute(state(top, logits, labels))["top2"]
    assert share == pytest.approx(oracle.top_k_accuracy_score(y, logits, k=2))


def test_regression_figures_are_sklearns_in_the_labels_unit():
    y = RNG.normal(2015, 4, 50).astype(np.float32)
    z = RNG.standard_normal(50).astype(np.float32)
    found = ERRORS.compute(state(ERRORS, z, full(y)))
    guess = z * 4.0 + 2015.0
    assert found["r2"] == pytest.approx(oracle.r2_score(y, guess), rel=1e-4)
    assert found["mae"] == pytest.approx(oracle.mean_absolute_error(y, guess), rel=1e-4)
    assert found["rmse"] == pytest.approx(oracle.mean_squared_error(y, guess) ** 0.5, rel=1e-4)


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_r2_of_labels_that_do_not_vary_is_unknown(rows):
    labels = full(np.full(3, 1999.7, np.float32), np.arange(3) < rows)
    said = np.array([0.3, 0.1, 0.2], np.float32)
    assert np.isnan(ERRORS.compute(state(ERRORS, said, labels))["r2"])


def _retrieve(queries, candidates, ids):
    prediction = {"vectors": {"a": queries, "b": candidates}}
    labels = Labels(None, np.ones(len(ids), np.float32), ids)
    return RANKS.compute(state(RANKS, prediction, labels))


def test_retrieval_is_a_plain_loop():
    ids = np.arange(20)
    a, b = RNG.standard_normal((2, 20, 4)).astype(np.float32)
    products = a.astype(np.float64) @ b.T.astype(np.float64)
    ranks = [int((row > row[i]).sum()) + 1 for i, row in enumerate(products)]
    found = _retrieve(a, b, ids)
    assert found["a_to_b_recall@3"] == pytest.approx(np.mean([r <= 3 for r in ranks]))
    assert found["a_to_b_median_rank"] == pytest.approx(np.median(ranks))


def test_a_constant_embedding_retrieves_at_chance():
    b = RNG.standard_normal((20, 4)).astype(np.float32)
    zero = np.zeros((20, 4), np.float32)
    assert _retrieve(zero, b, np.arange(20))["a_to_b_recall@3"] == pytest.approx(3 / 20)


def test_the_same_thing_twice_is_one_candidate_and_any_of_its_rows_is_right():
    ids = np.repeat(np.arange(10), 2)
    b = np.repeat(np.eye(10, dtype=np.float32), 2, axis=0)
    found = _retrieve(b, b, ids)
    assert found["a_to_b_recall@1"] == 1.0
    assert found["a_to_b_median_rank"] == 1.0


def test_locked_vectors_are_the_pooled_features_and_learn_nothing():
    rows = {name: RNG.standard_normal((3, 5, 4)).astype(np.float32) for name in ("a", "b")}
    tokens = {
        name: Tokens.of(jnp.asarray(x), jnp.ones(x.shape[:2], bool), name)
        for name, x in rows.items()
    }
    head = Embedding(4, locked=("b",))
    outputs, variables = jax.jit(head.init_with_output)(jax.random.key(0), tokens)
    assert set(variables["params"]) == {"log_scale", "norm_a", "out_a"}
    mean = rows["b"].mean(1)
    unit = mean / np.linalg.norm(mean, axis=-1, keepdims=True)
    np.testing.assert_allclose(outputs["vectors"]["b"], unit, rtol=1e-5, atol=1e-6)
    with pytest.raises(ConfigError, match="head.locked: unknown modality 'c'.*a, b"):
        jax.eval_shape(Embedding(4, locked=("c",)).init, jax.random.key(0), tokens)
    with pytest.raises(ConfigError, match="head.size: 8; locked 'b' is 4 wide"):
        jax.eval_shape(Embedding(8, locked=("b",)).init, jax.random.key(0), tokens)


def test_contrastive_loss_is_clips_where_all_ids_differ():
    prediction = _prediction("pairs", 8)
    labels = Labels(None, np.ones(8, np.float32), np.arange(8, dtype=np.int32))
    total, count = cost(MODEL.tasks["pairs"], prediction, labels)
    logits = 5.0 * prediction["vectors"]["image"] @ prediction["vectors"]["text"].T
    log_p = _log_softmax(logits), _log_softmax(logits.T)
    expected = -0.5 * (np.trace(log_p[0]) + np.trace(log_p[1]))
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    assert count == 8


def test_equal_ids_are_no_negatives():
    prediction = _prediction("pairs", 4)
    task = MODEL.tasks["pairs"]
    labels = Labels(None, np.ones(4, np.float32), np.zeros(4, np.int32))
    same, _ = cost(task, prediction, labels)
    assert same == 0.0


def test_reads_are_checked_and_put_in_order():
    names = ("image", "text")
    assert parse_reads("fused", names, "t") == ("fused",)
    assert parse_reads("text+image", names, "t") == ("image+text",)
    with pytest.raises(ConfigError, match="t.reads: unknown modality 'txt' .*'text'"):
        parse_reads("txt", names, "t")
    with pytest.raises(ConfigError, match="'fused' already reads all"):
        parse_reads("fused+image", names, "t")
