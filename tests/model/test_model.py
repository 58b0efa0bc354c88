"""The assembled model: what it refuses to build, and that what is absent reaches nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtmm_jax import model
from mtmm_jax.registry import ConfigError
from tests import toy


@functools.cache
def _ready(fusion="concat"):
    built = toy.build(fusion=fusion)
    variables = jax.jit(built.init)(jax.random.key(0), toy.SPEC.example(2))
    return built, variables, jax.jit(built)


def test_parameter_paths_and_counts():
    _, variables, _ = _ready()
    flat = model.flatten(variables["params"])
    rooms = {}
    for path, leaf in flat.items():
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


@pytest.mark.parametrize("fusion", ["concat", "bottleneck"])
def test_fillers_reach_no_prediction_loss_or_gradient(fusion):
    built, variables, apply = _ready(fusion)
    nan = toy.batch()
    zero = jax.tree.map(lambda x: np.nan_to_num(x) if x.dtype == np.float32 else x, nan)
    predictions, _ = apply(variables, nan["inputs"])
    expected, _ = apply(variables, zero["inputs"])
    for a, b in zip(jax.tree.leaves(predictions), jax.tree.leaves(expected), strict=True):
        assert np.isfinite(a).all()
        np.testing.assert_array_equal(a, b)

    @jax.jit
    @jax.grad
    def gradient(params, batch):
        full = {**variables, "params": params}
        mode = {"train": True, "key": jax.random.key(1)}
        predicted, _ = built(full, batch["inputs"], **mode)
        return built.losses(predicted, batch)[0].sum()

    there, back = (gradient(variables["params"], b) for b in (nan, zero))
    for a, b in zip(jax.tree.leaves(there), jax.tree.leaves(back), strict=True):
        assert np.isfinite(a).all()
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("fusion", ["concat", "bottleneck"])
def test_a_modality_left_out_equals_one_that_is_nowhere_present(fusion):
    built, variables, apply = _ready(fusion)
    batch = toy.batch()
    batch["inputs"]["audio"]["present"][:] = False
    there, _ = apply(variables, batch["inputs"])
    fewer = {k: v for k, v in batch["inputs"].items() if k != "audio"}
    back, _ = apply(variables, fewer)
    for a, b in zip(jax.tree.leaves(there), jax.tree.leaves(back), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    there = built.losses(*jax.tree.map(jnp.asarray, (there, batch)))
    back = built.losses(*jax.tree.map(jnp.asarray, (back, {**batch, "inputs": fewer})))
    np.testing.assert_allclose(there, back, rtol=1e-5)


def test_a_task_without_its_label_in_the_batch_counts_nothing():
    built, variables, apply = _ready()
    batch = toy.batch()
    del batch["targets"]["size"]
    predictions, _ = apply(variables, batch["inputs"])
    sums, counts = built.losses(predictions, batch)
    assert counts[list(built.tasks).index("size")] == 0
    assert np.isfinite(sums).all()


def test_readout_reads_each_tasks_own_copy():
    built, variables, _ = _ready()
    shared, _ = built.trunk(variables, toy.batch(holes=False)["inputs"])
    other = jax.tree.map(lambda x: jnp.sin(x) if x.dtype == jnp.float32 else x, shared)
    same, _ = built.readout(variables, dict.fromkeys(built.tasks, shared))
    mixed, _ = built.readout(variables, {"kind": other, "size": shared, "pairs": shared})
    np.testing.assert_array_equal(same["size"], mixed["size"])
    assert np.abs(same["kind"] - mixed["kind"]).max() > 1e-3


def test_modality_dropout_keeps_at_least_one_and_drops_by_row():
    built = toy.build(modality_dropout=0.6)
    variables = jax.jit(built.init)(jax.random.key(0), toy.SPEC.example(2))
    inputs = toy.batch(64, holes=False)["inputs"]

    def fused(key):
        shared, _ = built.trunk(variables, inputs, train=True, key=key)
        return shared["fused"].values[:, 0]

    first, again, other = (
        fused(jax.random.key(0)),
        fused(jax.random.key(0)),
        fused(jax.random.key(1)),
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0
    assert np.isfinite(first).all()


def test_modality_dropout_may_have_a_rate_for_each_modality():
    inputs = toy.batch(64, holes=False)["inputs"]
    changed = {**inputs, "image": {**inputs["image"], "x": 1 - inputs["image"]["x"]}}
    cheap = {"image": "image_mlp", "text": "text_bag", "audio": "audio_mlp"}
    tasks = {"size": {"kind": "regression"}}

    def told(dropout):
        built = toy.build(tasks, modality_dropout=dropout, encoders=cheap)
        variables = jax.jit(built.init)(jax.random.key(0), toy.SPEC.example(2))
        trunk = jax.jit(lambda x: built.trunk(variables, x, train=True, key=jax.random.key(1)))
        values = [trunk(x)[0]["fused"].values[:, 0] for x in (inputs, changed)]
        return np.abs(values[0] - values[1]).max(-1) > 1e-6  # did it see the image?

    assert told({"text": 0.9}).all()
    assert 0.05 < told({"image": 0.8}).mean() < 0.4
    np.testing.assert_array_equal(told(0.5), told(dict.fromkeys(cheap, 0.5)))


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
        ({"modality_dropout": {"text": 1}}, None, "modality_dropout.text: 1 is not in"),
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
