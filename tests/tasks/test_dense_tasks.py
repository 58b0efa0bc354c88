"""Segmentation, scales, paths, reconstruction, calibration: masks hold, metrics are true."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats
from sklearn import metrics as oracle

from mtmm_jax import heads, registry
from mtmm_jax.batch import Spec, Target
from mtmm_jax.evaluation import trivial_results
from mtmm_jax.registry import ConfigError
from mtmm_jax.tasks.classification import classification
from mtmm_jax.tasks.metrics import calibration
from mtmm_jax.tasks.ordinal import log_probabilities, ordinal
from mtmm_jax.tasks.reconstruction import reconstruction
from mtmm_jax.tasks.regression import regression
from mtmm_jax.tasks.segmentation import segmentation
from mtmm_jax.tasks.task import Labels
from mtmm_jax.tasks.waypoints import waypoints
from tests import toy
from tests.tasks.measured import (
    cost,
    cost_without_labels,
    labels_of,
    measure,
    metric_values,
    rows_of,
    state,
)

ROWS = 12
SCALE = ("low", "middle", "high", "top")
SPEC = Spec(
    toy.SPEC.modalities,
    {
        "mask": Target("mask", ("sky", "sea", "sand"), frequencies=(0.5, 0.3, 0.2), shape=(8, 12)),
        "path": Target("path", mean=3.0, std=2.0, shape=(5, 2)),
        "level": Target("class", SCALE, frequencies=(0.1, 0.4, 0.3, 0.2)),
        "size": toy.SPEC.targets["size"],
    },
)
# name -> task, its options, the shape of a row's prediction
CASES = {
    "mask": (segmentation, {"reads": ("image",)}, (8, 12, 3)),
    "path": (waypoints, {}, (5, 2)),
    "level": (ordinal, {}, (3,)),
    "table": (reconstruction, {}, (5,)),
    "series": (reconstruction, {}, (36,)),
    "image": (reconstruction, {"size": 4}, (48,)),
    "gaussian": (regression, {"loss": "gaussian", "target": "size"}, (2,)),
    "huber": (regression, {"loss": {"kind": "huber", "delta": 0.5}, "target": "size"}, (1,)),
    "class": (classification, {"target": "level"}, (4,)),
}
EVERY = pytest.mark.parametrize("name", CASES)


def make_head(config, *, where, **context):
    return registry.build(heads.HEADS, config, where=where, **context)


def build(name, **options):
    kind, own, _ = CASES[name]
    where = f"tasks.{name}"
    options = {"reads": ("fused",), **own, **options}
    options |= {"kind": "task"}
    reads = options.pop("reads")
    return registry.build(
        {"task": kind}, options, name, SPEC, where=where, make_head=make_head, reads=reads
    )


@functools.cache
def built(name):
    return build(name)


@functools.cache
def model():
    """A whole model that has all these tasks."""
    encoders = {"image": {"kind": "resnet", "preset": "tiny", "stem_kind": "half"}}
    whole = toy.build({"kind": "classification"}, encoders=encoders)
    tasks = {name: built(name) for name in CASES}
    return dataclasses.replace(whole, spec=SPEC, tasks=tasks)


def batch(size=ROWS, seed=0):
    """Holes in every input and label, NaN inside."""
    rng = np.random.default_rng(seed)
    y = {
        "mask": rng.integers(-1, 3, (size, 8, 12)).astype(np.int32),
        "path": {
            "points": rng.normal(3, 2, (size, 5, 2)).astype(np.float32),
            "valid": np.arange(5) < rng.integers(1, 6, size)[:, None],
        },
        "level": rng.integers(0, 4, size).astype(np.int32),
        "size": rng.normal(10, 2, size).astype(np.float32),
    }
    y["path"]["points"][~y["path"]["valid"]] = np.nan
    targets = {}
    for name, value in y.items():
        present = rng.random(size) < 0.7
        present[:2] = True, False
        for leaf in jax.tree.leaves(value):
            if leaf.dtype == np.float32:
                leaf[~present] = np.nan
            elif leaf.dtype == np.int32:
                leaf[~present] = 99
        targets[name] = {"y": value, "present": present}
    return {**toy.batch(size, seed), "targets": targets}


@functools.cache
def _labels_of_all():
    return labels_of(model(), batch())


def labels(name):
    return _labels_of_all()[name]


def prediction(name, seed=1, size=ROWS):
    said = np.random.default_rng(seed).standard_normal((size, *CASES[name][2])).astype(np.float32)
    return -np.sort(-said, -1) if name == "level" else said  # log odds of a scale fall


def full(y):
    y = jax.tree.map(lambda x: np.asarray(jnp.asarray(x)), y)
    return Labels(y, np.ones(len(jax.tree.leaves(y)[0]), np.float32))


# What holds for all of them


@EVERY
def test_only_the_rows_that_count_do(name):
    task, given, said = built(name), labels(name), prediction(name)
    keep = np.asarray(given.weight) > 0
    assert 3 <= keep.sum() < ROWS
    (total, count), grads, _ = measure(task, said, given)
    assert np.isfinite(total)
    assert count == keep.sum()
    assert np.isfinite(grads).all()
    assert not grads[~keep].any()
    assert np.abs(grads[keep]).max() > 0
    three = np.flatnonzero(keep)[:3]
    weight = given.weight * np.isin(np.arange(ROWS), three).astype(np.float32)
    (total, count), _, _ = measure(task, said, Labels(given.y, weight))
    alone = Labels(rows_of(given.y, three), given.weight[three])
    expected, expected_count = cost(task, said[three], alone)
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    assert float(count) == float(expected_count) == 3
    found = metric_values(task, said, Labels(given.y, weight))
    wanted = metric_values(task, said[three], alone)
    assert found == pytest.approx(wanted, rel=1e-4, nan_ok=True)
    assert task.headline in found


@EVERY
def test_order_changes_nothing_and_parts_merge_into_the_whole(name):
    task, given, said = built(name), labels(name), prediction(name)
    order = np.random.default_rng(0).permutation(ROWS)
    moved = Labels(rows_of(given.y, order), given.weight[order])
    whole = metric_values(task, said, given)
    assert metric_values(task, said[order], moved) == pytest.approx(whole, rel=1e-4)
    total = cost(task, said, given)[0]
    np.testing.assert_allclose(cost(task, said[order], moved)[0], total, rtol=1e-5)
    parts = [
        measure(task, said[r], Labels(rows_of(given.y, r), given.weight[r]))
        for r in (slice(0, 3), slice(3, 6), slice(6, 9), slice(9, 12))
    ]
    np.testing.assert_allclose(sum(part[0][0] for part in parts), total, rtol=1e-5)
    for key, metric in task.metrics.items():
        states = [part[2][key] for part in parts]
        left = functools.reduce(metric.merge, states)
        right = functools.reduce(lambda right, left: metric.merge(left, right), states[::-1])
        for found in (metric.compute(left), metric.compute(right)):
            assert found == pytest.approx({k: whole[k] for k in found}, rel=1e-4)


@EVERY
def test_without_any_label_nothing_is_counted(name):
    task, said = built(name), prediction(name)
    nothing = Labels(labels(name).y, np.zeros(ROWS, np.float32))
    assert cost(task, said, nothing) == (0, 0)
    assert all(np.isnan(v) for v in metric_values(task, said, nothing).values())
    assert cost_without_labels(task, said, ROWS) == (0, 0)


def test_a_model_learns_them_and_fillers_reach_nothing():
    whole, rows = model(), batch()
    variables = toy.variables(whole, whole.spec.example(2))

    @jax.jit
    def step(params, rows):
        """Mean losses and gradients, and the parameters after a step of length 0.1."""

        def loss(params):
            mode = {"train": True, "key": jax.random.key(1)}
            said, _ = whole({**variables, "params": params}, rows["inputs"], **mode)
            sums, counts = whole.losses(said, rows)
            return (sums / counts).sum(), sums / counts

        (_, each), grads = jax.value_and_grad(loss, has_aux=True)(params)
        scale = 0.1 / optax.tree.norm(grads)
        return each, grads, jax.tree.map(lambda p, g: p - scale * g, params, grads)

    params = variables["params"]
    start, grads, _ = step(params, rows)
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        assert np.isfinite(leaf).all()
        if "absent" not in jax.tree_util.keystr(path):
            assert np.abs(leaf).max() > 0, jax.tree_util.keystr(path)
    quiet = jax.tree.map(lambda x: np.nan_to_num(x) if x.dtype == np.float32 else x, rows)
    np.testing.assert_array_equal(step(params, quiet)[0], start)
    for _ in range(11):
        values, _, params = step(params, rows)
    assert (values < start).all(), dict(zip(CASES, values - start, strict=True))
    trivial = trivial_results(whole, [rows])
    for name, task in whole.tasks.items():
        assert np.isfinite(trivial[name][task.headline])
        assert task.decode(prediction(name)[0])


# Metrics against others'


def test_segmentation_is_the_mean_cross_entropy_of_known_pixels_and_sklearns_jaccard():
    task, said = built("mask"), prediction("mask")
    y = batch()["targets"]["mask"]["y"] % 3
    y[0] = -1  # nothing known: the row does not count
    y[1, :4] = -1
    given = full(y)
    total, count = cost(task, said, given)
    assert count == ROWS - 1
    expected = 0.0
    for row in range(1, ROWS):
        log_p = said[row] - np.log(np.exp(said[row].astype(np.float64)).sum(-1, keepdims=True))
        each = -np.take_along_axis(log_p, np.maximum(y[row], 0)[..., None], -1)[..., 0]
        expected += each[y[row] >= 0].mean()
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    known = y >= 0
    found = metric_values(task, said, given)
    pair = y[known], said.argmax(-1)[known]
    assert found["miou"] == pytest.approx(oracle.jaccard_score(*pair, average="macro"))
    assert found["pixel_accuracy"] == pytest.approx(oracle.accuracy_score(*pair))


def test_pixels_fit_a_grid_that_does_not_divide_the_picture():
    tokens = {"image": toy_grid()}
    module = make_head("pixels", where="h", size=3, shape=(9, 13), fusions=())
    said, variables = jax.eval_shape(module.init_with_output, jax.random.key(0), tokens)
    assert said.shape == (2, 9, 13, 3)
    assert set(variables["params"]["widen"]) == {
        "norm", "up1", "up1_norm", "hidden", "hidden_norm",
    }  # fmt: skip
    with pytest.raises(ConfigError, match=r"h: needs the grid of 'depth'.*fused: image|image: im"):
        wrong = make_head("pixels", where="h", size=3, shape=(9, 13), modality="depth")
        jax.eval_shape(wrong.init, jax.random.key(0), tokens)


def toy_grid():
    from mtmm_jax.batch import Tokens

    values = np.random.default_rng(0).standard_normal((2, 12, 8)).astype(np.float32)
    return Tokens.of(jnp.asarray(values), jnp.asarray(np.ones((2, 12), bool)), "image", grid=(3, 4))


def test_a_scale_is_its_formula_and_its_figures_are_sklearns():
    task, said = built("level"), prediction("level")
    y = np.random.default_rng(2).integers(0, 4, ROWS)
    above = 1 / (1 + np.exp(-said.astype(np.float64)))
    edges = np.concatenate([np.ones((ROWS, 1)), above, np.zeros((ROWS, 1))], 1)
    p = edges[:, :-1] - edges[:, 1:]
    np.testing.assert_allclose(np.exp(jax.jit(log_probabilities)(said)), p, atol=1e-5)
    total, _ = cost(task, said, full(y))
    np.testing.assert_allclose(total, -np.log(p[np.arange(ROWS), y]).sum(), rtol=1e-4)
    soft = np.random.default_rng(3).dirichlet(np.ones(4), ROWS).astype(np.float32)
    np.testing.assert_allclose(
        cost(task, said, full(soft))[0], -(soft * np.log(p)).sum(), rtol=1e-4
    )
    guess = (above > 0.5).sum(1)
    found = metric_values(task, said, full(y))
    assert found["mae"] == pytest.approx(oracle.mean_absolute_error(y, guess))
    assert found["accuracy"] == pytest.approx(oracle.accuracy_score(y, guess))
    kappa = oracle.cohen_kappa_score(y, guess, weights="quadratic")
    assert found["kappa"] == pytest.approx(kappa)


def test_thresholds_start_at_the_frequencies_and_stay_in_order():
    module = built("level").head
    tokens = {"fused": toy_grid()}
    variables = jax.jit(module.init)(jax.random.key(0), tokens)
    score = variables["params"]["score"]["out"]
    still = jax.tree.map(np.zeros_like, score)
    params = {**variables["params"], "score": {**variables["params"]["score"], "out": still}}

    @jax.jit
    def read(params):
        said = module.apply({"params": params}, tokens)
        return said, log_probabilities(said)

    p = np.exp(read(params)[1])
    np.testing.assert_allclose(p[0], [0.1, 0.4, 0.3, 0.2], atol=1e-3)
    params["gaps"] = np.full(2, -50.0, np.float32)
    assert (np.diff(np.asarray(read(params)[0])) < 0).all()


def test_paths_are_those_of_a_loop():
    task, said = built("path"), prediction("path")
    rng = np.random.default_rng(4)
    points = rng.normal(3, 2, (ROWS, 5, 2)).astype(np.float32)
    valid = rng.random((ROWS, 5)) < 0.6
    valid[0], valid[1] = False, True
    points[~valid] = np.nan
    losses, average, final = [], [], []
    for row in range(1, ROWS):
        places = np.flatnonzero(valid[row])
        if not len(places):
            continue
        z = (points[row, places] - 3.0) / 2.0
        losses.append(0.5 * ((said[row, places] - z) ** 2).sum(1).mean())
        far = np.linalg.norm(said[row, places] * 2.0 + 3.0 - points[row, places], axis=1)
        average.append(far.mean())
        final.append(far[-1])
    given = full({"points": points, "valid": valid})
    total, count = cost(task, said, given)
    np.testing.assert_allclose(total, np.sum(losses), rtol=1e-5)
    assert count == len(losses)
    expected = {"ade": np.mean(average), "fde": np.mean(final)}
    assert metric_values(task, said, given) == pytest.approx(expected, rel=1e-5)


def test_reconstruction_reads_its_label_off_the_input_and_scores_like_sklearn():
    rows = batch()
    given, entry = labels("table"), rows["inputs"]["table"]
    known = entry["mask"] & entry["present"][:, None]
    np.testing.assert_array_equal(given.y["known"], known)
    np.testing.assert_array_equal(np.asarray(given.y["values"])[known], entry["x"][known])
    some = np.stack([rows["inputs"][m]["present"] for m in ("image", "table")]).all(0)
    np.testing.assert_array_equal(np.asarray(given.weight) > 0, some)
    task, said = built("table"), prediction("table")
    x = (50.0 + np.random.default_rng(0).standard_normal((ROWS, 5))).astype(np.float32)
    everything = full({"values": x, "known": np.ones((ROWS, 5), bool)})
    score = oracle.r2_score(x, said, multioutput="variance_weighted")
    expected = {"r2": score, "mse": oracle.mean_squared_error(x, said)}
    assert metric_values(task, said, everything) == pytest.approx(expected, rel=1e-4)
    absent = {**rows, "inputs": {k: v for k, v in rows["inputs"].items() if k != "table"}}

    @jax.jit
    def weight(rows):
        return built("table").labels(rows, model().present(rows)).weight

    assert not np.asarray(weight(absent)).any()


def test_a_small_picture_is_the_mean_of_its_cells():
    given = labels("image")
    x = batch()["inputs"]["image"]["x"]
    row = int(np.flatnonzero(given.weight)[0])
    small = np.asarray(given.y["values"])[row].reshape(4, 4, 3)
    even = np.asarray(jax.jit(lambda x: jax.image.resize(x, (4, 4, 3), "linear"))(x[row]))
    np.testing.assert_allclose(small, even, rtol=1e-5)


def test_gaussian_regression_is_scipys_likelihood_and_tells_honest_from_sure():
    task, said = built("gaussian"), prediction("gaussian")
    y = np.random.default_rng(5).normal(10, 2, ROWS).astype(np.float32)
    spread = 8 * np.tanh(said[:, 1].astype(np.float64) / 8)
    law = stats.norm(said[:, 0] * 2.0 + 10.0, 2.0 * np.exp(0.5 * spread))
    nll = -law.logpdf(y)
    total, _ = cost(task, said, full(y))
    constant = ROWS * (0.5 * math.log(2 * math.pi) + math.log(2.0))
    np.testing.assert_allclose(total + constant, nll.sum(), rtol=1e-5)
    found = metric_values(task, said, full(y))
    assert found["nll"] == pytest.approx(nll.mean(), rel=1e-5)
    low, high = law.interval(0.9)
    assert found["inside_90"] == pytest.approx(((low <= y) & (y <= high)).mean())
    assert found["r2"] == pytest.approx(oracle.r2_score(y, law.mean()), rel=1e-4)
    assert task.decode(said[0])["std"] == pytest.approx(law.std()[0], rel=1e-5)
    rng = np.random.default_rng(6)
    y = rng.normal(10, 2, 2000).astype(np.float32)
    metric = calibration.interval_calibration(10.0, 2.0)
    for log_variance, inside, error in ((0.0, 0.9, 0.0), (-4.0, 0.176, 0.7)):
        z = np.stack([np.zeros(2000), np.full(2000, log_variance)], 1).astype(np.float32)
        scored = metric.compute(state(metric, z, full(y)))
        assert scored["inside_90"] == pytest.approx(inside, abs=0.03)
        assert scored["interval_error"] == pytest.approx(error, abs=0.05)


def test_huber_is_its_formula():
    said, y = prediction("huber"), np.random.default_rng(7).normal(10, 2, ROWS).astype(np.float32)
    error = np.abs(said[:, 0] - (y - 10) / 2)
    expected = np.where(error < 0.5, 0.5 * error**2, 0.5 * (error - 0.25)).sum()
    np.testing.assert_allclose(cost(built("huber"), said, full(y))[0], expected, rtol=1e-5)


def slow_ece(p, hit):
    places = np.minimum((p * 15).astype(int), 14)
    parts = [places == b for b in range(15)]
    return sum(abs(hit[m].mean() - p[m].mean()) * m.mean() for m in parts if m.any())


def test_calibration_of_classes_is_that_of_a_loop_and_sklearns_brier():
    rng = np.random.default_rng(8)
    z = rng.normal(0, 2, (2000, 4)).astype(np.float32)
    y = rng.integers(0, 4, 2000)
    p = np.exp(z.astype(np.float64))
    p /= p.sum(1, keepdims=True)
    metric = calibration.class_calibration()
    found = metric.compute(state(metric, z, full(y)))
    assert found["ece"] == pytest.approx(slow_ece(p.max(1), p.argmax(1) == y), abs=1e-5)
    assert found["brier"] == pytest.approx(((p - np.eye(4)[y]) ** 2).sum(1).mean(), rel=1e-5)
    soft = metric.compute(state(metric, z, full(np.eye(4, dtype=np.float32)[y])))
    assert soft == pytest.approx(found)
    honest = np.array([rng.choice(4, p=row) for row in p])
    assert metric.compute(state(metric, z, full(honest)))["ece"] < 0.08 < found["ece"]


def test_calibration_of_labels_is_that_of_a_loop_and_sklearns_brier():
    rng = np.random.default_rng(9)
    z, y = rng.normal(0, 2, (80, 3)).astype(np.float32), rng.integers(0, 2, (80, 3))
    p = 1 / (1 + np.exp(-z.astype(np.float64)))
    metric = calibration.label_calibration()
    found = metric.compute(state(metric, z, full(y.astype(np.float32))))
    assert found["ece"] == pytest.approx(slow_ece(p.ravel(), y.ravel()), abs=1e-5)
    assert found["brier"] == pytest.approx(oracle.brier_score_loss(y.ravel(), p.ravel()), rel=1e-5)


def test_the_trivial_classifier_says_the_frequencies():
    task = built("class")
    said = np.tile(task.trivial, (1000, 1))
    y = np.repeat(np.arange(4), [100, 400, 300, 200])
    found = metric_values(task, said, full(y))
    assert found["ece"] == pytest.approx(0.0, abs=1e-5)
    assert found["brier"] == pytest.approx(1 - 0.01 - 0.16 - 0.09 - 0.04, abs=1e-4)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("level", {"head": "vector"}, "tasks.level.head: Vector gives numbers in no order"),
        ("huber", {"loss": "hubert"}, "tasks.huber.loss.kind: unknown kind 'hubert' .*'huber'"),
        ("huber", {"loss": {"kind": "huber", "delta": 0}}, "tasks.huber.loss.delta: 0"),
        ("gaussian", {"loss": {"kind": "gaussian", "limit": -1}}, "tasks.gaussian.loss.limit: -1"),
        ("gaussian", {"loss": {"kind": "mse", "delta": 1}}, "unknown hyper-parameter of mse"),
        ("table", {"modality": "tabel"}, "tasks.table.modality: unknown modality 'tabel'"),
        ("table", {"modality": "text"}, "modality: unknown kind of modality 'text'"),
        ("image", {"size": 0}, "tasks.image.size: 0"),
        ("mask", {"target": "level"}, "'level' is a 'class' label; the task needs 'mask'"),
        ("path", {"head": "paths"}, "tasks.path.head.kind: unknown kind 'paths'"),
    ],
)
def test_bad_values_are_named(name, options, message):
    with pytest.raises(ConfigError, match=message):
        build(name, **options)
