"""Losses count only what is there; metrics are monoids and equal independent computations."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn import metrics as oracle

from mtmm_jax.batch import Tokens
from mtmm_jax.heads.embedding import Embedding
from mtmm_jax.registry import ConfigError
from mtmm_jax.tasks.metrics import monoids as metrics
from mtmm_jax.tasks.task import Labels, parse_reads
from tests import toy

MODEL = toy.build()
RNG = np.random.default_rng(0)


def _prediction(name, size, seed=0):
    rng = np.random.default_rng(seed)
    if name == "pairs":
        vectors = {r: rng.standard_normal((size, 8)).astype(np.float32) for r in ("image", "text")}
        unit = {r: v / np.linalg.norm(v, axis=1, keepdims=True) for r, v in vectors.items()}
        return {"vectors": unit, "scale": np.float32(5.0)}
    return rng.standard_normal((size, {"kind": 3, "size": 1}[name])).astype(np.float32)


def _labels(name, size=8, seed=0):
    batch = jax.tree.map(jnp.asarray, toy.batch(size, seed))
    return MODEL.tasks[name].labels(batch, MODEL.present(batch))


@pytest.mark.parametrize("name", MODEL.tasks)
def test_loss_equals_that_of_the_rows_that_count(name):
    task, labels = MODEL.tasks[name], _labels(name)
    keep = np.asarray(labels.weight) > 0
    assert 0 < keep.sum() < 8
    prediction = _prediction(name, 8)
    total, count = task.loss(prediction, labels, None)
    few = jax.tree.map(lambda x: x[keep] if np.ndim(x) else x, prediction)
    alone = Labels(
        None if labels.y is None else labels.y[keep], labels.weight[keep], labels.id[keep]
    )
    expected, expected_count = task.loss(few, alone, None)
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    assert float(count) == float(expected_count) == keep.sum()


@pytest.mark.parametrize("name", MODEL.tasks)
def test_rows_that_do_not_count_have_no_gradient(name):
    task, labels = MODEL.tasks[name], _labels(name)
    grads = jax.grad(lambda p: task.loss(p, labels, None)[0])(_prediction(name, 8))
    for leaf in jax.tree.leaves(grads):
        assert np.isfinite(leaf).all()
        if leaf.ndim:
            assert not leaf[np.asarray(labels.weight) == 0].any()


@pytest.mark.parametrize("name", MODEL.tasks)
def test_a_task_without_any_label_counts_nothing(name):
    task, labels = MODEL.tasks[name], _labels(name)
    nothing = Labels(labels.y, jnp.zeros(8), labels.id)
    total, count = task.loss(_prediction(name, 8), nothing, None)
    assert total == 0
    assert count == 0
    for metric in task.metrics.values():
        figures = metric.compute(jax.device_get(metric.update(_prediction(name, 8), nothing)))
        assert all(np.isnan(value) for value in figures.values())


@pytest.mark.parametrize("name", MODEL.tasks)
def test_metrics_of_two_halves_merge_into_the_whole(name):
    task = MODEL.tasks[name]
    labels, prediction = _labels(name, 16), _prediction(name, 16)

    def part(rows):
        few = jax.tree.map(lambda x: x[rows] if np.ndim(x) else x, prediction)
        y = None if labels.y is None else labels.y[rows]
        return few, Labels(y, labels.weight[rows], labels.id[rows])

    for metric in task.metrics.values():
        whole = metric.compute(jax.device_get(metric.update(prediction, labels)))
        states = [
            jax.device_get(metric.update(*part(rows))) for rows in (slice(0, 8), slice(8, 16))
        ]
        merged = metric.compute(metric.merge(*states))
        assert merged == pytest.approx(whole, rel=1e-5)


def test_cross_entropy_with_smoothing_is_optax():
    task = toy.build({"kind": {"kind": "classification", "label_smoothing": 0.1}}).tasks["kind"]
    logits, y = _prediction("kind", 8), RNG.integers(0, 3, 8)
    total, _ = task.loss(logits, Labels(jnp.asarray(y), jnp.ones(8)), None)
    targets = optax.smooth_labels(jax.nn.one_hot(y, 3), 0.1)
    expected = optax.softmax_cross_entropy(logits, targets).sum()
    np.testing.assert_allclose(total, expected, rtol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_probability_per_class_is_a_label_too(smoothing):
    config = {"kind": "classification", "label_smoothing": smoothing}
    task, logits = toy.build({"kind": config}).tasks["kind"], _prediction("kind", 8)
    soft = np.random.default_rng(1).dirichlet(np.ones(3), 8).astype(np.float32)
    weight = jnp.asarray([1.0, 0.0] * 4)
    expected = optax.softmax_cross_entropy(logits, optax.smooth_labels(soft, smoothing))
    soft[1::2] = np.nan  # of rows that do not count
    labels = Labels(jnp.asarray(soft), weight)
    total, count = task.loss(logits, labels, None)
    np.testing.assert_allclose(total, expected[::2].sum(), rtol=1e-5)
    assert count == 4
    gradient = jax.grad(lambda z: task.loss(z, labels, None)[0])(logits)
    assert np.isfinite(gradient).all()
    assert not gradient[1::2].any()
    y = np.nan_to_num(soft).argmax(1).astype(np.int32)
    hard = Labels(jnp.asarray(y), weight)
    sharp = Labels(jax.nn.one_hot(y, 3), weight)
    np.testing.assert_allclose(*(task.loss(logits, x, None)[0] for x in (hard, sharp)), rtol=1e-5)
    for name, metric in task.metrics.items():
        wanted = jax.device_get(metric.update(logits, hard))
        # Calibration scores against the probabilities themselves; the others see the likeliest.
        for same in (sharp,) if name == "calibration" else (labels, sharp):
            got = jax.device_get(metric.update(logits, same))
            jax.tree.map(np.testing.assert_array_equal, got, wanted)


def test_classification_figures_are_sklearns():
    y, logits = RNG.integers(0, 5, 60), RNG.standard_normal((60, 5)).astype(np.float32)
    labels = Labels(jnp.asarray(y), jnp.ones(60))
    metric = metrics.confusion(5)
    figures = metric.compute(np.asarray(metric.update(logits, labels)))
    assert figures["accuracy"] == pytest.approx(oracle.accuracy_score(y, logits.argmax(1)))
    expected = oracle.f1_score(y, logits.argmax(1), average="macro")
    assert figures["macro_f1"] == pytest.approx(expected)
    top = metrics.top(2)
    share = top.compute(jax.device_get(top.update(logits, labels)))["top2"]
    assert share == pytest.approx(oracle.top_k_accuracy_score(y, logits, k=2))


def test_regression_figures_are_sklearns_in_the_labels_unit():
    y = RNG.normal(2015, 4, 50).astype(np.float32)
    z = RNG.standard_normal(50).astype(np.float32)
    metric = metrics.regression_errors(2015.0, 4.0)
    state = jax.device_get(metric.update(z, Labels(jnp.asarray(y), jnp.ones(50))))
    figures = metric.compute(state)
    guess = z * 4.0 + 2015.0
    assert figures["r2"] == pytest.approx(oracle.r2_score(y, guess), rel=1e-4)
    assert figures["mae"] == pytest.approx(oracle.mean_absolute_error(y, guess), rel=1e-4)
    assert figures["rmse"] == pytest.approx(oracle.mean_squared_error(y, guess) ** 0.5, rel=1e-4)


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_r2_of_labels_that_do_not_vary_is_unknown(rows):
    metric = metrics.regression_errors(2015.0, 4.0)
    weight = (jnp.arange(3) < rows).astype(jnp.float32)
    state = metric.update(jnp.array([0.3, 0.1, 0.2]), Labels(jnp.full(3, 1999.7), weight))
    assert np.isnan(metric.compute(jax.device_get(state))["r2"])


def _retrieve(queries, candidates, ids):
    metric = metrics.retrieval_ranks("a", "b", ks=(1, 3))
    prediction = {"vectors": {"a": queries, "b": candidates}}
    labels = Labels(None, jnp.ones(len(ids)), jnp.asarray(ids))
    return metric.compute(jax.device_get(metric.update(prediction, labels)))


def test_retrieval_is_a_plain_loop():
    ids = np.arange(20)
    a, b = RNG.standard_normal((2, 20, 4)).astype(np.float32)
    products = a.astype(np.float64) @ b.T.astype(np.float64)
    ranks = [int((row > row[i]).sum()) + 1 for i, row in enumerate(products)]
    figures = _retrieve(a, b, ids)
    assert figures["a_to_b_recall@3"] == pytest.approx(np.mean([r <= 3 for r in ranks]))
    assert figures["a_to_b_median_rank"] == pytest.approx(np.median(ranks))


def test_a_constant_embedding_retrieves_at_chance():
    b = RNG.standard_normal((20, 4)).astype(np.float32)
    zero = np.zeros((20, 4), np.float32)
    assert _retrieve(zero, b, np.arange(20))["a_to_b_recall@3"] == pytest.approx(3 / 20)


def test_the_same_thing_twice_is_one_candidate_and_any_of_its_rows_is_right():
    ids = np.repeat(np.arange(10), 2)
    b = np.repeat(np.eye(10, dtype=np.float32), 2, axis=0)
    figures = _retrieve(b, b, ids)
    assert figures["a_to_b_recall@1"] == 1.0
    assert figures["a_to_b_median_rank"] == 1.0


def test_locked_vectors_are_the_pooled_features_and_learn_nothing():
    rows = {name: RNG.standard_normal((3, 5, 4)).astype(np.float32) for name in ("a", "b")}
    tokens = {
        name: Tokens.of(jnp.asarray(x), jnp.ones(x.shape[:2], bool), name)
        for name, x in rows.items()
    }
    head = Embedding(4, locked=("b",))
    told, variables = head.init_with_output(jax.random.key(0), tokens)
    assert set(variables["params"]) == {"log_scale", "norm_a", "out_a"}
    mean = rows["b"].mean(1)
    unit = mean / np.linalg.norm(mean, axis=-1, keepdims=True)
    np.testing.assert_allclose(told["vectors"]["b"], unit, rtol=1e-5, atol=1e-6)
    with pytest.raises(ConfigError, match="head.locked: unknown modality 'c'.*a, b"):
        Embedding(4, locked=("c",)).init(jax.random.key(0), tokens)
    with pytest.raises(ConfigError, match="head.size: 8; locked 'b' is 4 wide"):
        Embedding(8, locked=("b",)).init(jax.random.key(0), tokens)


def test_contrastive_loss_is_clips_where_all_ids_differ():
    prediction = _prediction("pairs", 8)
    labels = Labels(None, jnp.ones(8), jnp.arange(8))
    total, count = MODEL.tasks["pairs"].loss(prediction, labels, None)
    logits = 5.0 * prediction["vectors"]["image"] @ prediction["vectors"]["text"].T
    log_p = jax.nn.log_softmax(logits), jax.nn.log_softmax(logits.T)
    expected = -0.5 * (np.trace(log_p[0]) + np.trace(log_p[1]))
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    assert count == 8


def test_equal_ids_are_no_negatives():
    prediction = _prediction("pairs", 4)
    task = MODEL.tasks["pairs"]
    same, _ = task.loss(prediction, Labels(None, jnp.ones(4), jnp.zeros(4, jnp.int32)), None)
    assert same == 0.0


def test_reads_are_checked_and_put_in_order():
    names = ("image", "text")
    assert parse_reads("fused", names, "t") == ("fused",)
    assert parse_reads("text+image", names, "t") == ("image+text",)
    with pytest.raises(ConfigError, match="t.reads: unknown modality 'txt' .*'text'"):
        parse_reads("txt", names, "t")
    with pytest.raises(ConfigError, match="'fused' already reads all"):
        parse_reads("fused+image", names, "t")
