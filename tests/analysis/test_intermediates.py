"""Whatever fusions, decisions and sharings hand over gets a picture, and says what is on it."""

import fnmatch
import functools

import jax
import numpy as np
import pytest

from mtmm_jax.analysis import intermediates, pictures
from mtmm_jax.analysis.intermediates import Known, Seen
from mtmm_jax.batch import Span
from mtmm_jax.fusion import DECISIONS, FUSIONS
from mtmm_jax.model import flatten
from mtmm_jax.sharing import SHARINGS
from tests import toy

ROWS, WIDTH = 5, 24
ENCODERS = {"text": {"kind": "text_bag"}, "image": {"kind": "cnn"}}  # not as in the alphabet
TASKS = {"kind": {"kind": "classification"}, "again": {"kind": "classification", "target": "kind"}}
OPTIONS = {
    "multiplicative": {"form": "vector"},  # the one that scales
    **{k: {"layers": 1} for k in ("transformer", "transformer_tokens", "bottleneck")},
    "mmoe": {"experts": 3},
    "dselect": {"experts": 4},
}
CASES = {
    **{f"fusion {k}": {"fusion": {"kind": k, **OPTIONS.get(k, {})}} for k in FUSIONS},
    **{
        f"sharing {k}": {"fusion": "join", "sharing": {"kind": k, **OPTIONS.get(k, {})}}
        for k in SHARINGS
    },
    **{f"decision {k}": {"fusion": {"kind": k, "stage": "decision"}} for k in DECISIONS},
}
# Those that weigh nothing. A new entry is in here, or its pictures are looked at.
SILENT = {
    *(f"fusion {k}" for k in ("concat", "tensor", "low_rank", "mlb", "mfb", "tucker", "block")),
    *("fusion join", "fusion population"),
    *(f"sharing {k}" for k in ("hard", "shared_middle", "separate", "adapter")),
}
# What they hand over that is no weight, gate or route.
FEATURES = {"fusion product_of_experts": {"fusion/fused/mean", "fusion/fused/variance"}}


@functools.cache
def _looked_at(case):
    """The paths of all that was handed over, and the pictures that the report has of it.

    Nothing is compiled: which axis is what depends on shapes alone, so the numbers are drawn.
    """
    encoders = ENCODERS if "sharing" not in case else {"text": ENCODERS["text"]}
    model = toy.build(TASKS, encoders=encoders, width=WIDTH, **CASES[case])
    look = functools.partial(intermediates.looked_at, model)

    def shapes(rows):
        inputs = toy.batch(rows, holes=False)["inputs"]
        return jax.eval_shape(look, model.shapes, {name: inputs[name] for name in encoders})

    rng = np.random.default_rng(0)
    few, (more, _, _) = shapes(ROWS), shapes(ROWS + 1)
    numbers = jax.tree.map(lambda x: rng.random(x.shape, np.float32), few)
    seen, spans, fused = intermediates.arranged(*numbers, more)
    known = Known(tuple("abcde"), {}, spans, fused, tuple(TASKS))
    own = {path for path in flatten(more) if not path.startswith("encoders/")}
    return own, *intermediates.drawn(seen, known)


@pytest.mark.parametrize("case", CASES)
def test_all_that_is_handed_over_is_drawn(case):
    paths, heat, _ = _looked_at(case)
    shown = [m.path.removesuffix(" as weights").replace("each task", "*") for m in heat]
    missing = {p for p in paths if not any(fnmatch.fnmatch(p, pattern) for pattern in shown)}
    assert missing == FEATURES.get(case, set())
    assert not (paths and case in SILENT)
    for m in heat:
        assert m.values.shape == (len(m.rows.labels), len(m.columns.labels)), m.path
        assert np.isfinite(m.values).all(), m.path
    if heat:  # one picture of each kind
        kinds = {(m.rows.name, m.columns.name): m for m in heat}
        pictures.plt.close(pictures.heat_maps(list(kinds.values())))


@pytest.mark.parametrize(
    ("case", "path", "rows", "columns"),
    [
        ("sharing mtan", "sharing/attention1_kind", "sample", "feature"),
        ("sharing sluice", "sharing/alpha1", "task, part", "task, part"),
        ("sharing sluice", "sharing/beta", "task", "layer"),
        ("sharing film", "sharing/gamma1_each task", "task", "feature"),
        ("sharing film", "sharing/beta1_each task", "task", "feature"),
        ("sharing branching", "sharing/routing_parent_each task", "task", "node"),
        ("fusion film", "fusion/fused/gamma", "sample", "feature"),
        ("fusion film", "fusion/fused/beta", "sample", "feature"),
        ("fusion multiplicative", "fusion/fused/scale", "sample", "feature"),
        ("fusion product_of_experts", "fusion/fused/precisions as weights", "sample", "modality"),
        ("fusion gcn", "fusion/fused/adjacency", "modality", "modality"),
        ("decision max", "heads/kind/decision/modality_weights", "sample", "modality"),
    ],
)
def test_pictures_say_what_is_on_their_axes(case, path, rows, columns):
    shown = {m.path: m for m in _looked_at(case)[1]}[path]
    assert (shown.rows.name, shown.columns.name) == (rows, columns)
    if columns == "modality":
        assert shown.columns.labels == ("image", "text")


KNOWN = Known(
    samples=("cat", "dog", "cow"),
    words={},
    spans={"image": Span("image", 4, (2, 2), (1.0, 1.0)), "text": Span("text", 6, (6,), (1.0,))},
    fused=(),
    tasks=("kind", "size"),
)


@pytest.mark.parametrize(
    ("path", "shape", "per_sample", "rows", "columns"),
    [
        ("sharing/gate_kind", (3, 2), True, "sample", "part"),
        ("sharing/beta", (2, 2), False, "task", "layer"),
        ("sharing/routing_parents2", (2, 2), False, "node", "node"),
        ("sharing/attention/weights", (3, 4, 2, 10), True, "part", "token"),
        ("sharing/attention1_kind", (3, 10, 4), True, "sample", "part"),
        ("fusion/fused/routed/expert_use", (2,), False, "", "expert"),
        ("fusion/fused/routed/gates", (3, 2, 2), True, "modality", "expert"),
    ],
)
def test_what_is_a_modules_own_is_not_taken_for_tasks_or_modalities(
    path, shape, per_sample, rows, columns
):
    values = np.random.default_rng(0).random(shape).astype(np.float32)
    (shown,), patches = intermediates.drawn({path: Seen(values, per_sample)}, KNOWN)
    assert (shown.rows.name, shown.columns.name) == (rows, columns)
    assert bool(patches) == path.endswith("weights")


def test_a_channel_mask_is_averaged_over_the_tokens_that_have_one():
    mask = np.ones((3, 10, 24), np.float32)
    mask[:, 6:] = 0.0
    (shown,), _ = intermediates.drawn({"sharing/attention1_kind": Seen(mask, True)}, KNOWN)
    np.testing.assert_allclose(shown.values, np.ones((3, 24)))


def test_precisions_are_drawn_as_the_share_of_each_modality():
    precisions = np.array([[[1.0, 3.0], [2.0, 0.0]]] * 3, np.float32)
    (shown,), _ = intermediates.drawn({"fusion/fused/precisions": Seen(precisions, True)}, KNOWN)
    np.testing.assert_allclose(shown.values, [[(1 / 4 + 3 / 4) / 2, (2 / 4 + 0) / 2]] * 3)


def test_gates_of_each_modality_are_rows_of_one_picture():
    arrays = {
        f"bottleneck/{name}/{key}": Seen(np.full(shape, value, np.float32), False)
        for name, value in (("image", 0.25), ("text", 0.75))
        for key, shape in (("gates", (3,)), ("modality_gate", ()))
    }
    gates, whole = intermediates.drawn(arrays, KNOWN)[0]
    assert gates.path == "bottleneck/each modality/gates"
    assert gates.rows == whole.rows == ("modality", ("image", "text"))
    np.testing.assert_allclose(gates.values, [[0.25] * 3, [0.75] * 3])
    np.testing.assert_allclose(whole.values, [[0.25], [0.75]])


def test_a_room_with_many_pictures_hides_no_other_room_and_says_what_it_leaves_out():
    attention = Seen(np.ones((3, 2, 6, 4), np.float32), True)
    arrays = {f"fusion/fused/text_from_image_layer{i}/weights": attention for i in range(16)}
    heat, patches = intermediates.drawn(
        {"encoders/image/weights": attention, **arrays, "sharing/stitch1": Seen(np.eye(2), False)},
        KNOWN,
    )
    assert len(heat) == 14
    last = "(4 more left out) fusion/fused/text_from_image_layer11/weights"
    assert [m.path for m in heat[11:]] == [last, "sharing/stitch1", "encoders/image/weights"]
    # Three samples a picture: the last one stays one picture.
    noted = "(36 more left out) fusion/fused/text_from_image_layer3/weights"
    assert [m.path for m in patches[9:12]] == [noted] * 3


# What decisions tell


@functools.cache
def _weights_of(kind):
    """A rule's values, its weights in the order of names, and who is there: of b, a and c."""
    rng = np.random.default_rng(2)
    values = rng.normal(size=(4, 3, 5)).astype(np.float32)
    present = np.array([[1, 1, 1], [1, 0, 1], [0, 1, 0], [0, 0, 0]], bool)
    rule = DECISIONS[kind](modalities=("b", "a", "c"))
    variables = toy.variables(rule, values, present)
    apply = jax.jit(functools.partial(rule.apply, variables, mutable=["intermediates"]))
    _, seen = apply(np.where(present[..., None], values, np.nan), present)
    (weights,) = seen["intermediates"]["modality_weights"]
    return values, present, np.asarray(weights)[:, [1, 0, 2]], lambda here: apply(values, here)[0]


@pytest.mark.parametrize("kind", DECISIONS)
def test_decisions_tell_what_each_modality_counted_for(kind):
    _, present, weights, _ = _weights_of(kind)
    assert weights.shape == (4, 3)
    assert (weights >= 0).all()
    assert not weights[~present].any()
    np.testing.assert_allclose(weights.sum(1), [1, 1, 1, 0], atol=1e-6)


def test_reported_weights_are_their_formulas():
    _, present, weights, _ = _weights_of("mean")
    np.testing.assert_allclose(weights[:3], present[:3] / present[:3].sum(1, keepdims=True))
    values, present, weights, _ = _weights_of("product")
    votes = values[0] - np.log(np.exp(values[0]).sum(-1, keepdims=True))
    lift = np.maximum(votes[:, votes.sum(0).argmax()] - votes.mean(-1), 0)
    np.testing.assert_allclose(weights[0], lift / lift.sum(), atol=1e-6)
    winner = np.unravel_index(votes.argmax(), votes.shape)[0]
    np.testing.assert_array_equal(_weights_of("max")[2][0], np.eye(3)[winner])
    _, present, weights, again = _weights_of("learned")
    without = [again(present & ~np.eye(3, dtype=bool)[m]) for m in range(3)]
    moved = [np.abs(np.asarray(again(present) - y)).sum(-1)[0] for y in without]
    np.testing.assert_allclose(weights[0], moved / np.sum(moved), atol=1e-5)
