"""Detection: geometry, matching and mAP equal slow ones; both heads read back what they learn."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.optimize import linear_sum_assignment

from mtmm_jax import heads, registry
from mtmm_jax.analysis.boxes import detections, draw_detections
from mtmm_jax.batch import Spec, Target, Tokens
from mtmm_jax.evaluation import trivial_results
from mtmm_jax.heads.grid import grid_of
from mtmm_jax.registry import ConfigError
from mtmm_jax.tasks import TASKS
from mtmm_jax.tasks.boxes import centres
from mtmm_jax.tasks.boxes import geometry as boxes
from mtmm_jax.tasks.boxes.assignment import assign
from mtmm_jax.tasks.metrics.mean_ap import THRESHOLDS, Truth
from mtmm_jax.tasks.task import Labels
from tests import toy
from tests.tasks.measured import (
    cost,
    cost_without_labels,
    loss_and_gradient,
    measure,
    metric_values,
    rows_of,
    state,
)

NAMES = ("cat", "dog", "emu")
SLOTS = 4
LABEL = Target("boxes", NAMES, frequencies=(0.5, 0.3, 0.2), length=SLOTS)
FORMS = {
    "centres": {"kind": "centres", "upsample": 1, "hidden": 8},
    "queries": {"kind": "queries", "queries": 6, "width": 16, "layers": 1, "heads": 2},
}
BOTH = pytest.mark.parametrize("form", FORMS)


def make_head(config, *, where, **context):
    return registry.build(heads.HEADS, config, where=where, **context)


def build(form="centres", reads=("image",), **options):
    spec = Spec(toy.SPEC.modalities, {"things": LABEL})
    options = {"head": FORMS.get(form, form), **options}
    options |= {"kind": "detection"}
    given = {"make_head": make_head, "reads": reads}
    return registry.build(TASKS, options, "things", spec, where="tasks.things", **given)


@functools.cache
def built(form, **options):
    return build(form, **options)


def some_boxes(rng, *shape):
    """Boxes of a fifth to a half of the picture."""
    side = rng.uniform(0.2, 0.5, (*shape, 2))
    low = rng.uniform(0, 1 - side)
    return np.concatenate([low, low + side], -1).astype(np.float32)


def truth(size=6, seed=0, weight=None):
    """Labels of which some rows do not count and some slots are empty: NaN there."""
    rng = np.random.default_rng(seed)
    weight = np.array([1, 0, 1, 1, 0, 1] * size, np.float32)[:size] if weight is None else weight
    valid = rng.random((size, SLOTS)) < 0.7
    valid[2] = False
    y = some_boxes(rng, size, SLOTS)
    y[~valid] = np.nan
    y[weight == 0] = np.nan
    kinds = rng.integers(0, 3, (size, SLOTS)).astype(np.int32)
    kinds[weight == 0] = 77
    y = {"boxes": y, "classes": kinds, "valid": valid | (weight == 0)[:, None]}
    return Labels(y, weight)


def prediction(form, size=6, seed=1):
    rng = np.random.default_rng(seed)
    shapes = {
        "centres": {"heat": (8, 8, 3), "box": (8, 8, 4)},
        "queries": {"logits": (6, 4), "box": (6, 4)},
    }[form]
    made = {k: rng.standard_normal((size, *s)).astype(np.float32) for k, s in shapes.items()}
    if form == "queries":
        made["box"] = 1 / (1 + np.exp(-made["box"]))
    return made


# Geometry


def centred(boxes):
    """Middle and size of boxes given by their corners."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return np.concatenate([(low + high) / 2, high - low], -1)


def heat_map(clean, side):
    """The bumps of each box, the heat of each class, and where the centres are."""

    def draw(clean):
        bumps = centres.bumps_of(clean, (side, side))
        return bumps, *centres.heat_of(bumps, clean, 3)

    return jax.device_get(jax.jit(draw)(clean))


def slow_iou(a, b):
    height = min(a[2], b[2]) - max(a[0], b[0])
    width = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(height, 0) * max(width, 0)
    areas = [(x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)]
    return shared / (sum(areas) - shared)


def test_overlaps_are_those_of_a_loop():
    rng = np.random.default_rng(0)
    a, b = some_boxes(rng, 7), some_boxes(rng, 5)
    expected = [[slow_iou(x, y) for y in b] for x in a]

    @jax.jit
    def measured(a, b):
        empty = jnp.zeros((1, 4))
        middles = boxes.centred(a)
        overlaps = boxes.iou(a, b), jax.vmap(boxes.giou)(a[:5], b)
        return *overlaps, middles, boxes.corners(middles), boxes.iou(empty, empty)

    found, generalised, middles, again, nothing = measured(a, b)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    for x, y, one in zip(a[:5], b, generalised, strict=True):
        hull = (max(x[2], y[2]) - min(x[0], y[0])) * (max(x[3], y[3]) - min(x[1], y[1]))
        both = np.prod(x[2:] - x[:2]) + np.prod(y[2:] - y[:2])
        shared = slow_iou(x, y) * both / (1 + slow_iou(x, y))
        value = slow_iou(x, y) - (hull - (both - shared)) / hull
        np.testing.assert_allclose(one, value, atol=1e-5)
    np.testing.assert_allclose(again, a, atol=1e-6)
    np.testing.assert_allclose(middles, centred(a), atol=1e-6)
    assert not np.isnan(nothing).any()


def test_suppression_is_that_of_a_loop():
    rng = np.random.default_rng(1)
    many = np.stack([some_boxes(rng, 20) for _ in range(5)])
    kinds = rng.integers(0, 2, (5, 20))
    alive = rng.random((5, 20)) < 0.8
    kept = jax.jit(jax.vmap(lambda b, k, a: boxes.suppress(b, k, a, 0.3)))(many, kinds, alive)
    for row in range(5):
        stay = []
        for i in np.flatnonzero(alive[row]):
            rivals = [j for j in stay if kinds[row, j] == kinds[row, i]]
            if all(slow_iou(many[row, i], many[row, j]) <= 0.3 for j in rivals):
                stay.append(i)
        assert np.flatnonzero(kept[row]).tolist() == stay


def test_peaks_are_those_of_a_loop():
    heat = np.random.default_rng(2).integers(0, 5, (2, 4, 5, 2)).astype(np.float32)
    found = np.asarray(jax.jit(boxes.peaks)(heat))
    for place in np.ndindex(*heat.shape):
        b, y, x, c = place
        around = heat[b, max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2, c]
        assert found[place] == (heat[place] >= around.max())


# Matching


@pytest.mark.parametrize("shape", [(1, 1), (4, 4), (3, 9)])
def test_assignment_is_scipys(shape):
    rng = np.random.default_rng(3)
    cost = rng.standard_normal((40, *shape)).astype(np.float32)
    cost[::2] = cost[::2].round()  # ties
    valid = rng.random((40, shape[0])) < 0.7
    found = np.asarray(jax.jit(jax.vmap(assign))(cost, valid))
    assert (found[~valid] == -1).all()
    for c, chosen, rows in zip(cost, found, valid, strict=True):
        rows = np.flatnonzero(rows)
        assert len(set(chosen[rows])) == len(rows)
        best = c[rows][linear_sum_assignment(c[rows])].sum()
        np.testing.assert_allclose(c[rows, chosen[rows]].sum(), best, atol=1e-5)


def test_assignment_survives_costs_that_are_not_finite():
    cost = np.array([[np.nan, 1.0, 2.0], [np.inf, 0.0, np.nan]], np.float32)
    found = jax.jit(assign)(cost, np.ones(2, bool))
    assert np.asarray(found).tolist() == [2, 1]
    nothing = np.full((3, 3), np.nan, np.float32)
    assert len(set(np.asarray(jax.jit(assign)(nothing, np.ones(3, bool))))) == 3
    with pytest.raises(ValueError, match="3 rows cannot each"):
        assign(np.zeros((3, 2), np.float32), np.ones(3, bool))


# Losses


@BOTH
@pytest.mark.parametrize("box_loss", ["l1", "mse", {"l1": 5.0, "giou": 2.0}])
def test_the_loss_is_that_of_the_rows_that_count(form, box_loss):
    task, labels, said = build(form, box_loss=box_loss), truth(), prediction(form)
    keep = np.flatnonzero(labels.weight)
    (total, count), grads = loss_and_gradient(task, said, labels)
    # The others replaced by rows that do count, of weight 0.
    rows = np.where(labels.weight > 0, np.arange(6), keep[0])
    clean = Labels(rows_of(labels.y, rows), labels.weight)
    expected = loss_and_gradient(task, rows_of(said, rows), clean)[0][0]
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    assert count == len(keep)
    absent = np.asarray(labels.weight) == 0
    for leaf in jax.tree.leaves(grads):
        assert np.isfinite(leaf).all()
        assert not leaf[absent].any()
        assert np.abs(leaf[~absent]).max() > 0


@BOTH
def test_loss_and_figures_are_those_of_the_rows_that_count_alone(form):
    task, labels, said = built(form), truth(), prediction(form)
    keep = np.flatnonzero(labels.weight)
    alone = rows_of(said, keep), Labels(rows_of(labels.y, keep), labels.weight[keep])
    np.testing.assert_allclose(cost(task, said, labels), cost(task, *alone), rtol=1e-5)
    assert metric_values(task, said, labels) == pytest.approx(metric_values(task, *alone))


@BOTH
def test_without_any_label_nothing_is_counted(form):
    task, said = built(form), prediction(form)
    nothing = Labels(truth().y, np.zeros(6, np.float32))
    assert cost(task, said, nothing) == (0, 0)
    assert all(np.isnan(v) for v in metric_values(task, said, nothing).values())
    assert cost_without_labels(task, said, 6) == (0, 0)


@BOTH
def test_the_order_of_boxes_and_rows_changes_nothing(form):
    task, labels, said = built(form), truth(), prediction(form)
    total, _ = cost(task, said, labels)
    slots = np.array([2, 0, 3, 1])
    turned = Labels(jax.tree.map(lambda x: x[:, slots], labels.y), labels.weight)
    np.testing.assert_allclose(cost(task, said, turned)[0], total, rtol=1e-5)
    order = np.random.default_rng(0).permutation(6)
    moved = Labels(rows_of(labels.y, order), labels.weight[order])
    np.testing.assert_allclose(cost(task, rows_of(said, order), moved)[0], total, rtol=1e-5)
    assert metric_values(task, rows_of(said, order), moved) == pytest.approx(
        metric_values(task, said, labels)
    )


def test_the_order_of_guesses_changes_nothing_and_the_matching_is_the_cheapest():
    labels, said = truth(weight=np.ones(6, np.float32)), prediction("queries")
    task = build("queries", box_loss="mse", empty_weight=0.2)
    total = loss_and_gradient(task, said, labels)[0][0]
    order = np.array([3, 1, 5, 0, 4, 2])
    turned = jax.tree.map(lambda x: x[:, order], said)
    again = loss_and_gradient(task, turned, labels)[0][0]
    np.testing.assert_allclose(again, total, rtol=1e-5)
    # By hand: cross-entropy + squared error of the pairs that scipy finds.
    expected = 0.0
    for row in range(6):
        here = np.flatnonzero(labels.y["valid"][row])
        wanted = centred(labels.y["boxes"])[row, here]
        kinds = np.asarray(labels.y["classes"][row])[here]
        logits = said["logits"][row].astype(np.float64)
        p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        error = 0.5 * ((wanted[:, None] - said["box"][row][None]) ** 2).sum(-1)
        one, other = linear_sum_assignment(error - p.T[kinds])
        answers, weight = np.full(6, 3), np.full(6, 0.2)
        answers[other], weight[other] = kinds[one], 1.0
        expected += (-weight * np.log(p[np.arange(6), answers])).sum() / weight.sum()
        expected += error[one, other].sum() / max(len(here), 1)
    np.testing.assert_allclose(total, expected, rtol=1e-4)


def test_the_heat_map_losses_are_their_formulas():
    labels, said = truth(weight=np.ones(6, np.float32)), prediction("centres")
    y = labels.y
    valid = np.asarray(y["valid"])
    clean = Truth(np.where(valid[..., None], y["boxes"], 0.0), y["classes"], y["valid"])
    _, heat, centre = heat_map(clean, 8)
    heat = heat.astype(np.float64)
    for b, n in zip(*np.nonzero(valid), strict=True):
        box, kind = np.asarray(y["boxes"])[b, n], int(y["classes"][b, n])
        cell = (8 * (box[:2] + box[2:]) / 2).astype(int)
        assert centre[b, cell[0], cell[1], kind]
        far = (np.arange(8) + 0.5 - 4 * (box[0] + box[2])) / (0.8 * (box[2] - box[0]))
        other = (cell[1] + 0.5 - 4 * (box[1] + box[3])) / (0.8 * (box[3] - box[1]))
        bump = np.exp(-0.5 * (far**2 + other**2))
        assert (heat[b, :, cell[1], kind] >= np.minimum(bump, 1 - 1e-6) - 1e-6).all()
    assert centre.sum() <= valid.sum()
    p = 1 / (1 + np.exp(-said["heat"].astype(np.float64)))
    count = np.maximum(valid.sum(1), 1)
    focal = np.where(centre, (1 - p) ** 2 * np.log(p), 0.5 * (1 - heat) ** 4 * p**2 * np.log(1 - p))
    plain = heat * np.log(p) + 0.5 * (1 - heat) * np.log(1 - p)
    for kind, values in (("focal", focal), ("cross_entropy", plain)):
        task = build("centres", class_loss=kind, empty_weight=0.5, box_loss={"l1": 0.0})
        expected = -(values.sum((1, 2, 3)) / count).sum()
        total = loss_and_gradient(task, said, labels)[0][0]
        np.testing.assert_allclose(total, expected, rtol=1e-4)


def test_one_class_a_cell_is_its_formula():
    """A loop over cells: is anything there, what is it, and the scores that are read off."""
    labels, said = truth(weight=np.ones(6, np.float32)), prediction("centres")
    y = jax.tree.map(np.asarray, labels.y)
    clean = Truth(np.where(y["valid"][..., None], y["boxes"], 0.0), y["classes"], y["valid"])
    bumps = heat_map(clean, 8)[0].astype(np.float64)
    z = said["heat"].astype(np.float64)
    odds = np.exp(z)
    there = odds.sum(-1) / (1 + odds.sum(-1))
    likely = odds / odds.sum(-1, keepdims=True)
    expected = 0.0
    for b in range(6):
        own = {n: {} for n in range(bumps.shape[1])}
        loss = 0.0
        for cell in np.ndindex(8, 8):
            t, p = bumps[b][:, *cell].max(), there[b][cell]
            loss -= (1 - p) ** 2 * np.log(p) if t >= 1 else 0.5 * (1 - t) ** 4 * p**2 * np.log1p(-p)
            if t > 0.05:
                own[bumps[b][:, *cell].argmax()][cell] = t
        for n, cells in own.items():
            for cell, t in cells.items():
                loss -= t / sum(cells.values()) * np.log(likely[b][cell][y["classes"][b, n]])
        expected += loss / max(y["valid"][b].sum(), 1)
    task = build("centres", class_loss="softmax", empty_weight=0.5, box_loss={"l1": 0.0})
    total = loss_and_gradient(task, said, labels)[0][0]
    np.testing.assert_allclose(total, expected, rtol=1e-4)

    _, scores = jax.jit(centres.guesses_of_one_class)(said)
    places = np.asarray(scores).reshape(6, 8, 8, 3)
    for b, *cell in np.ndindex(6, 8, 8):
        y0, x0 = (max(at - 1, 0) for at in cell)
        best = there[b, *cell] >= there[b, y0 : cell[0] + 2, x0 : cell[1] + 2].max() - 1e-12
        np.testing.assert_allclose(
            places[b, *cell], best * there[b, *cell] * likely[b, *cell], rtol=1e-4, atol=1e-7
        )


def test_boxes_of_cells_are_written_and_read_alike():
    rng = np.random.default_rng(4)
    wanted = some_boxes(rng, 2, 4, 6)
    again = jax.jit(lambda wanted: centres.decode(centres.encode(wanted)))(wanted)
    np.testing.assert_allclose(again, wanted, atol=1e-6)


@BOTH
def test_a_perfect_prediction_scores_one_and_costs_little(form):
    task = build(form, box_loss="l1", suppression=0.99)
    labels = truth(weight=np.ones(6, np.float32), seed=5)
    y = jax.tree.map(np.asarray, labels.y)
    y["boxes"] = np.nan_to_num(y["boxes"])
    if form == "centres":
        clean = Truth(*(y[k] for k in ("boxes", "classes", "valid")))
        bumps, heat, _ = heat_map(clean, 16)
        cells = bumps.argmax(1)
        wanted = np.take_along_axis(y["boxes"], cells.reshape(6, -1, 1), 1).reshape(6, 16, 16, 4)
        perfect = {
            "heat": np.where(heat >= 1, 12.0, -12.0).astype(np.float32),
            "box": np.asarray(jax.jit(centres.encode)(wanted)),
        }
    else:
        logits = np.full((6, 6, 4), -9.0, np.float32)
        logits[..., 3] = 0.0
        box = np.full((6, 6, 4), 0.5, np.float32)
        for b, n in zip(*np.nonzero(y["valid"]), strict=True):
            logits[b, 5 - n, y["classes"][b, n]] = 9.0
            box[b, 5 - n] = centred(y["boxes"])[b, n]
        perfect = {"logits": logits, "box": box}
    found = metric_values(task, perfect, labels)
    assert found == pytest.approx({"mAP@.5": 1.0, "mAP@.5:.95": 1.0, "located@.5": 1.0})
    assert cost(task, perfect, labels)[0] / 6 < 0.01
    decoded = task.decode(rows_of(perfect, 0))
    here = y["valid"][0]
    assert sorted(one["class"] for one in decoded["boxes"]) == sorted(
        NAMES[k] for k in y["classes"][0][here]
    )
    assert len(decoded["best"]) == here.sum()
    images = np.random.default_rng(0).uniform(-1, 1, (2, 16, 16, 3))
    drawn = detections(images, [decoded["boxes"], []], [decoded["boxes"], []])
    assert len(drawn.axes[0].patches) == 2 * here.sum()
    draw_detections(np.zeros((8, 8, 3), np.uint8), decoded["boxes"])


# Mean average precision


def slow_map(found, y, weight, threshold, classless=False):
    """Pooled detections of each class, every distinct score a cut; no arrays shared with ours."""
    values = []
    kinds = {0} if classless else set(range(3))
    for kind in kinds:
        pool, total = [], 0
        for b in np.flatnonzero(weight):
            mine = [n for n in range(SLOTS) if y["valid"][b, n]]
            mine = [n for n in mine if classless or y["classes"][b, n] == kind]
            total += len(mine)
            said = [k for k in range(len(found.scores[b])) if found.scores[b, k] > 0]
            said = [k for k in said if classless or found.classes[b, k] == kind]
            for k in sorted(said, key=lambda k: -found.scores[b, k]):
                near = {n: slow_iou(found.boxes[b, k], y["boxes"][b, n]) for n in mine}
                best = max(near, key=near.get, default=None)
                hit = best is not None and near[best] >= threshold
                if hit:
                    mine.remove(best)
                pool.append((float(found.scores[b, k]), hit))
        if not total:
            continue
        cuts = []
        for cut in {score for score, _ in pool}:
            hits = [hit for score, hit in pool if score >= cut]
            cuts.append((sum(hits) / total, sum(hits) / len(hits)))
        at = [
            max((p for r, p in cuts if r >= recall - 1e-9), default=0.0)
            for recall in np.linspace(0, 1, 101)
        ]
        values.append(np.mean(at))
    return np.mean(values) if values else np.nan


def near_truth(labels, seed):
    """A set prediction around the true boxes, of few distinct scores."""
    rng = np.random.default_rng(seed)
    size = len(labels.weight)
    said = prediction("queries", size, seed)
    real = np.nan_to_num(centred(labels.y["boxes"]), nan=0.5)
    said["box"][:, :SLOTS] = real + rng.normal(0, 0.03, real.shape)
    said["logits"] = np.full((size, 6, 4), -20.0, np.float32)
    kinds = rng.integers(0, 3, (size, 6))
    right = rng.random((size, SLOTS)) < 0.7
    kinds[:, :SLOTS] = np.where(right, np.asarray(labels.y["classes"]) % 3, kinds[:, :SLOTS])
    np.put_along_axis(
        said["logits"], kinds[..., None], rng.integers(-2, 3, (size, 6, 1)).astype(np.float32), -1
    )
    said["logits"][..., 3] = 0.0
    return said


@pytest.mark.parametrize("seed", range(4))
def test_map_is_that_of_a_plain_loop(seed):
    task = built("queries", suppression=1.0, detections=6)
    labels = truth(12, seed)
    said = near_truth(labels, seed)
    collected = measure(task, said, labels)[2]["detections"]
    ours = metric_values(task, said, labels)
    y = jax.tree.map(np.asarray, labels.y)
    flat = tuple(collected[f"found_{key}"] for key in ("boxes", "scores", "classes"))
    found = type("Found", (), dict(zip(("boxes", "scores", "classes"), flat, strict=True)))
    assert len(np.unique(found.scores.round(6))) < 25  # ties within and between pictures
    slow = functools.partial(slow_map, found, y, np.asarray(labels.weight))
    assert ours["mAP@.5"] == pytest.approx(slow(0.5), abs=1e-6)
    assert ours["mAP@.5:.95"] == pytest.approx(np.mean([slow(t) for t in THRESHOLDS]), abs=1e-6)
    assert ours["located@.5"] == pytest.approx(slow(0.5, classless=True), abs=1e-6)
    assert 0.1 < ours["mAP@.5"] < 1


def test_halves_merge_into_the_whole():
    task, labels = built("queries", suppression=1.0, detections=6), truth(12)
    said, metric = near_truth(labels, 0), task.metrics["detections"]
    parts = [
        measure(task, rows_of(said, r), Labels(rows_of(labels.y, r), labels.weight[r]))[2][
            "detections"
        ]
        for r in (slice(0, 6), slice(6, 12))
    ]
    assert metric.compute(metric.merge(*parts)) == pytest.approx(metric_values(task, said, labels))


def test_nothing_found_is_zero_and_nothing_there_is_nan():
    task, labels = built("centres"), truth()
    silent = {**prediction("centres"), "heat": np.full((6, 8, 8, 3), -200.0, np.float32)}
    assert set(metric_values(task, silent, labels).values()) == {0.0}
    empty = Labels({**labels.y, "valid": np.zeros((6, SLOTS), bool)}, labels.weight)
    assert all(np.isnan(v) for v in metric_values(task, prediction("centres"), empty).values())
    assert np.isfinite(cost(task, silent, empty)[0])


def test_more_false_detections_below_the_last_true_one_cost_nothing_above_they_do():
    task = build("queries", suppression=1.0)
    one = np.array([[[0.1, 0.1, 0.5, 0.5]] * SLOTS], np.float32)
    y = {"boxes": one, "classes": np.zeros((1, 4), np.int32), "valid": np.arange(4)[None] < 1}
    labels = Labels(y, np.ones(1, np.float32))
    box = np.tile(np.array([0.8, 0.8, 0.1, 0.1], np.float32), (1, 6, 1))
    box[0, 0] = [0.3, 0.3, 0.4, 0.4]
    for logit, expected in ((-1.0, 1.0), (1.0, 1 / 6), (0.5, 1 / 6)):
        logits = np.full((1, 6, 4), -30.0, np.float32)
        logits[..., 0], logits[..., 3] = logit, 0.0
        logits[0, 0, 0] = 0.5
        metric = task.metrics["detections"]
        found = metric.compute(state(metric, {"logits": logits, "box": box}, labels))
        assert found["mAP@.5"] == pytest.approx(expected)


# The whole model


def batch(size=4, seed=0):
    labels = truth(size, seed, weight=np.array([1, 0, 1, 1], np.float32))
    present = np.asarray(labels.weight) > 0
    return {
        **toy.batch(size, seed, holes=False),
        "targets": {"things": {"y": jax.tree.map(np.asarray, labels.y), "present": present}},
    }


def model(task, **changes):
    encoders = {"image": {"kind": "resnet", "preset": "tiny", "stem_kind": "half"}}
    built = toy.build({"kind": "classification"}, encoders=encoders, **changes)
    fusions = built.fusions if task.reads == ("fused",) else {}
    spec = Spec(toy.SPEC.modalities, {"things": LABEL})
    return dataclasses.replace(built, spec=spec, tasks={"things": task}, fusions=fusions)


@BOTH
def test_a_model_learns_boxes_and_fillers_reach_nothing(form):
    whole = model(build(form))
    rows = batch()
    rows["inputs"]["image"]["present"] = np.array([True, True, False, True])
    rows["inputs"]["image"]["x"][2] = np.nan
    variables = toy.variables(whole, whole.spec.example(2))

    @jax.jit
    def step(params, rows):
        """The loss, its count and gradient, and the parameters after a step of length 0.05."""

        def loss(params):
            mode = {"train": True, "key": jax.random.key(1)}
            said, _ = whole({**variables, "params": params}, rows["inputs"], **mode)
            sums, counts = whole.losses(said, rows)
            return sums[0], counts[0]

        found, grads = jax.value_and_grad(loss, has_aux=True)(params)
        scale = 0.05 / optax.tree.norm(grads)
        return *found, grads, jax.tree.map(lambda p, g: p - scale * g, params, grads)

    params = variables["params"]
    start, count, grads, _ = step(params, rows)
    assert count == 2
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads["heads"]):
        name = jax.tree_util.keystr(path)
        assert np.isfinite(leaf).all(), name
        if not ("key" in name and "bias" in name):
            assert np.abs(leaf).max() > 0, name
    silent = jax.tree.map(lambda x: np.nan_to_num(x) if x.dtype == np.float32 else x, rows)
    assert step(params, silent)[0] == start
    for _ in range(9):
        value, _, _, params = step(params, rows)
    assert value < start
    trivial = trivial_results(whole, [rows])["things"]
    assert 0 <= trivial["mAP@.5"] <= 1


def test_the_grid_of_a_clip_is_that_of_its_last_moment():
    values = np.random.default_rng(0).standard_normal((3, 4, 2, 5, 6)).astype(np.float32)
    mask = np.ones((3, 4, 2, 5), bool)
    mask[1, 2:] = False  # a clip that ends early, and one that is not there
    mask[2] = False
    clip = Tokens.of(
        jnp.asarray(values.reshape(3, 40, 6)), jnp.asarray(mask.reshape(3, 40)), "v", grid=(4, 2, 5)
    )
    words = Tokens.of(
        *map(jnp.asarray, (np.ones((3, 7, 6), np.float32), np.ones((3, 7), bool))), "words"
    )

    @jax.jit
    def read():
        return grid_of({"fused": Tokens.join([words, clip])}, "v", (), "head")

    grid = np.asarray(read())
    np.testing.assert_array_equal(grid[:2], [values[0, 3], values[1, 1]])
    assert np.isfinite(grid[2]).all()


def test_a_pooled_grid_is_refused_before_compiling_naming_what_keeps_it():
    task = build("centres", reads=("fused",))
    pooled = model(task)
    with pytest.raises(ConfigError, match=r"tasks.things.head: needs the grid .*bottleneck"):
        jax.eval_shape(pooled.init, jax.random.key(0), pooled.spec.example(2))
    kept = model(task, fusion="bottleneck")
    shapes = jax.eval_shape(kept.init, jax.random.key(0), kept.spec.example(2))
    assert "things" in shapes["params"]["heads"]
    nowhere = model(build("queries", reads=("fused",)))
    jax.eval_shape(nowhere.init, jax.random.key(0), nowhere.spec.example(2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": "vector"}, "tasks.things.head: Vector finds no boxes; choices: centres, queries"),
        ({"head": "centre"}, "tasks.things.head.kind: unknown kind 'centre' .*'centres'"),
        ({"head": {"kind": "queries", "queries": 3}}, "3 guesses cannot be 4 boxes"),
        ({"box_loss": "l2"}, "tasks.things.box_loss: unknown loss 'l2'"),
        ({"box_loss": {"l1": -1.0}}, "tasks.things.box_loss.l1: -1.0"),
        ({"box_loss": {}}, "tasks.things.box_loss: {}"),
        ({"class_loss": "focal", "head": "queries"}, "class_loss: unknown loss 'focal'"),
        ({"class_loss": "softmax", "head": "queries"}, "class_loss: unknown loss 'softmax'"),
        ({"suppression": 2.0}, "tasks.things.suppression: 2.0"),
        ({"detections": 0}, "tasks.things.detections: 0"),
        ({"empty_weight": 0.0}, "tasks.things.empty_weight: 0.0"),
    ],
)
def test_bad_values_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        build(**options)
