"""The assembled model: what it refuses to build, and that what is absent reaches nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtmm_jax import model
from mtmm_jax.registry import ConfigError
from tests import toy

# Encoders that compile fast; one synchronises its statistics, one has a mask.
ENCODERS = {
    "image": {"kind": "cnn", "norm": "batch"},
    "text": "text_bag",
    "audio": "audio_mlp",
}


@functools.cache
def _ready():
    """`(model, variables, passes)`: `passes` gives predictions, losses, and the gradient of a
    training step."""
    built = toy.build(encoders=ENCODERS)

    def losses(params, variables, batch):
        mode = {"train": True, "key": jax.random.key(1)}
        predicted, _ = built({**variables, "params": params}, batch["inputs"], **mode)
        return built.losses(predicted, batch)[0].sum()

    @jax.jit
    def passes(variables, batch):
        predictions, _ = built(variables, batch["inputs"])
        gradient = jax.grad(losses)(variables["params"], variables, batch)
        return predictions, built.losses(predictions, batch), gradient

    return built, toy.variables(built, toy.SPEC.example(2)), passes


def test_parameter_paths_and_counts():
    rooms = {}
    for path, leaf in model.flatten(toy.build().shapes["params"]).items():
        place = "/".join(path.split("/")[:2])
        rooms[place] = rooms.get(place, 0) + leaf.size
    assert rooms == {
        "encoders/image": 310_096,
        "encoders/text": 116_752,
        "encoders/audio": 80_448,
        "fusion/fused": 928,
        "heads/kind": 83,
        "heads/size": 49,
        "heads/pairs": 337,
    }


def test_fillers_reach_no_prediction_loss_or_gradient():
    _, variables, passes = _ready()
    nan = toy.batch()
    zero = jax.tree.map(lambda x: np.nan_to_num(x) if x.dtype == np.float32 else x, nan)
    found, expected = (jax.tree.leaves(passes(variables, batch)) for batch in (nan, zero))
    for a, b in zip(found, expected, strict=True):
        assert np.isfinite(a).all()
        np.testing.assert_array_equal(a, b)


def test_a_modality_left_out_equals_one_that_is_nowhere_present():
    built, variables, passes = _ready()
    batch = toy.batch()
    batch["inputs"]["audio"]["present"][:] = False
    there, losses, _ = passes(variables, batch)
    fewer = {k: v for k, v in batch["inputs"].items() if k != "audio"}

    @jax.jit
    def of_fewer(variables, batch):
        predictions, _ = built(variables, batch["inputs"])
        return predictions, built.losses(predictions, batch)

    back, same = of_fewer(variables, {**batch, "inputs": fewer})
    for a, b in zip(jax.tree.leaves(there), jax.tree.leaves(back), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    np.testing.assert_allclose(losses, same, rtol=1e-5)


def test_a_task_without_its_label_in_the_batch_counts_nothing():
    built, variables, _ = _ready()
    batch = toy.batch()
    del batch["targets"]["size"]
    predictions = jax.eval_shape(built, variables, batch["inputs"])[0]
    drawn = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), predictions)
    sums, counts = jax.jit(built.losses)(drawn, batch)
    assert counts[list(built.tasks).index("size")] == 0
    assert np.isfinite(sums).all()


def test_readout_reads_each_tasks_own_copy():
    built, variables, _ = _ready()

    @jax.jit
    def readouts(variables, inputs):
        shared, _ = built.trunk(variables, inputs)
        other = jax.tree.map(lambda x: jnp.sin(x) if x.dtype == jnp.float32 else x, shared)
        same, _ = built.readout(variables, dict.fromkeys(built.tasks, shared))
        copies = {"kind": other, "size": shared, "pairs": shared}
        return same, built.readout(variables, copies)[0]

    same, mixed = readouts(variables, toy.batch(holes=False)["inputs"])
    np.testing.assert_array_equal(same["size"], mixed["size"])
    assert np.abs(same["kind"] - mixed["kind"]).max() > 1e-3


MLPS = {"image": "image_mlp", "text": "text_bag", "audio": "audio_mlp"}
SIZE = {"size": {"kind": "regression"}}


@functools.cache
def _fused(dropout):
    """`fused(inputs, key)`: the fused values of a training step under the dropout `{name: rate}`,
    or of one rate."""
    rates = dict(dropout) if isinstance(dropout, tuple) else dropout
    built = toy.build(SIZE, modality_dropout=rates, encoders=MLPS)
    variables = toy.variables(built, toy.SPEC.example(2))

    @jax.jit
    def fused(inputs, key):
        shared, _ = built.trunk(variables, inputs, train=True, key=key)
        return shared["fused"].values[:, 0]

    return fused


def test_modality_dropout_keeps_at_least_one_and_drops_by_row():
    inputs = toy.batch(64, holes=False)["inputs"]
    keys = [jax.random.key(seed) for seed in (0, 0, 1)]
    first, again, other = (np.asarray(_fused(0.5)(inputs, key)) for key in keys)
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0
    assert np.isfinite(first).all()
    assert np.abs(first).max(1).min() > 0  # nothing present would be zeros


def test_modality_dropout_may_have_a_rate_for_each_modality():
    inputs = toy.batch(64, holes=False)["inputs"]
    changed = {**inputs, "image": {**inputs["image"], "x": 1 - inputs["image"]["x"]}}

    def sees_the_image(dropout):
        values = [np.asarray(_fused(dropout)(x, jax.random.key(1))) for x in (inputs, changed)]
        return np.abs(values[0] - values[1]).max(-1) > 1e-6

    assert sees_the_image((("text", 0.9),)).all()
    assert 0.05 < sees_the_image((("image", 0.8),)).mean() < 0.4
    each = tuple((name, 0.5) for name in MLPS)
    np.testing.assert_array_equal(sees_the_image(0.5), sees_the_image(each))


SEEN = {"kind": {"kind": "classification", "reads": "image"}}


@pytest.mark.parametrize(
    ("changes", "tasks", "message"),
    [
        ({"fusion": "concatt"}, None, r"model.fusion.kind: unknown kind 'concatt' .*'concat'"),
        ({"fusions": "concat"}, None, "model: unknown key 'fusions'"),
        ({"encoders": {"imagee": "resnet"}}, None, "model.encoders.imagee: unknown modality"),
        (
            {"encoders": {**toy.MODEL["encoders"], "image": "text_gru"}},
            None,
            r"model.encoders.image: text_gru|does not read image",
        ),
        (
            {"encoders": {**toy.MODEL["encoders"], "image": {"kind": "resnet", "preset": "19"}}},
            None,
            None,
        ),
        (
            {"encoders": {k: v for k, v in toy.MODEL["encoders"].items() if k != "image"}},
            None,
            "tasks.pairs.reads: 'image' has no encoder; model.encoders has: text, audio",
        ),
        ({}, {"kind": "clasification"}, "tasks.kind.kind: unknown kind .*'classification'"),
        (
            {},
            {"colour": {"kind": "classification"}},
            "tasks.colour.target: the data has no label 'colour'; .*: kind, spelling",
        ),
        ({}, {"size": {"kind": "classification"}}, "'size' is a 'number' label"),
        ({}, {"p": {"kind": "retrieval", "reads": "image"}}, "retrieval needs two or more"),
        (
            {},
            {"spelling": {"kind": "classification"}},
            "tasks.spelling.reads: fused: the label 'spelling' is made from text; "
            "read others: audio, image",
        ),
        ({}, {"spelling": {"kind": "classification", "reads": "image+text"}}, "made from text"),
        ({"modality_dropout": 1.5}, None, "model.modality_dropout: 1.5"),
        ({"modality_dropout": {"texts": 0.1}}, None, "modality_dropout: unknown .*'texts'"),
        ({"modality_dropout": {"text": 0.1}}, SEEN, "unknown fused modality 'text'"),
        ({"fusion": "concatt"}, SEEN, "model.fusion.kind: unknown kind 'concatt'"),
        ({"missing": "zero"}, SEEN, "model.missing: no task reads a fusion; choices: mask"),
        ({"encoders": {"image": {"kind": "cnn", "cut": -1}}}, SEEN, "image.cut: -1 is not"),
        (
            {"modality_dropout": {"text": 1}},
            None,
            "dropout.text: 1 is not a number from 0",
        ),
        ({}, {"kind": {"kind": "classification", "rads": "image"}}, "unknown .*'rads'"),
        ({}, {}, None),
    ],
)
def test_impossible_models_are_refused_before_anything_compiles(changes, tasks, message):
    if tasks == {}:
        with pytest.raises(ConfigError, match="tasks: is empty"):
            model.build({**toy.MODEL, **changes}, {}, toy.SPEC)
        return
    with pytest.raises(ConfigError, match=message):
        built = toy.build(tasks, **changes)
        jax.eval_shape(built.init, jax.random.key(0), toy.SPEC.example(2))


def test_a_label_made_from_text_may_be_read_off_the_picture():
    built = toy.build({"spelling": {"kind": "classification", "reads": "audio+image"}})
    assert built.reads == ("audio+image",)
    assert set(built.fusions) == {"audio+image"}


@pytest.mark.parametrize("name", ["", " ", "a/b", "../x", "a\nb", "\x1b[2J", "\u202ex", "x" * 101])
def test_names_that_would_break_paths_or_pages_are_refused(name):
    named = {"width": 8, "encoders": {name: "text_bag"}, "fusion": "concat"}
    for config, tasks in ((named, {}), ({**named, "encoders": {}}, {name: None})):
        with pytest.raises(ConfigError, match="is no name: it is empty, over 100") as caught:
            model.build(config, tasks, toy.SPEC)
        assert "\n" not in str(caught.value)
