"""The batch contract: what `Spec` refuses, what `clean` stops, how `Tokens` find their grid."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from mtmm_jax.batch import Modality, Spec, Target, Tokens, clean
from mtmm_jax.registry import ConfigError
from tests import toy


def test_spec_survives_json():
    assert Spec.from_dict(json.loads(json.dumps(toy.SPEC.to_dict()))) == toy.SPEC


def test_masks_and_paths_have_the_shape_that_the_spec_says():
    targets = {
        "land": Target("mask", ("sea", "sand"), shape=(4, 6)),
        "way": Target("path", shape=(5, 2)),
    }
    spec = Spec(toy.SPEC.modalities, targets)
    assert Spec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    batch = spec.example(3)
    spec.check(batch)
    assert batch["targets"]["land"]["y"].shape == (3, 4, 6)
    assert batch["targets"]["land"]["y"].dtype == np.int32
    points = batch["targets"]["way"]["y"]
    assert (points["points"].shape, points["valid"].shape) == ((3, 5, 2), (3, 5))
    points["points"] = np.zeros((3, 5, 3), np.float32)
    with pytest.raises(ConfigError, match="targets.way.y: is float32"):
        spec.check(batch)


def test_examples_and_random_batches_pass():
    toy.SPEC.check(toy.SPEC.example(3))
    toy.SPEC.check(toy.batch())


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (
            lambda b: b["inputs"].update(sound=b["inputs"]["audio"]),
            "batch.inputs: unknown modality",
        ),
        (
            lambda b: b["targets"].update(colour=b["targets"]["kind"]),
            "batch.targets: unknown target",
        ),
        (lambda b: b["inputs"]["image"].pop("present"), "batch.inputs.image: has no 'present'"),
        (
            lambda b: b["inputs"]["image"].update(x=np.zeros((8, 16, 16, 1), np.float32)),
            r"image.x: is float32\[8, 16, 16, 1\]; the spec says float32\[B, 16, 16, 3\]",
        ),
        (
            lambda b: b["inputs"]["text"].update(x=np.zeros((8, 6), np.float32)),
            "text.x: is float32",
        ),
        (lambda b: b["inputs"]["text"].update(mask=np.ones((8, 5), bool)), "text.mask"),
        (lambda b: b["targets"]["kind"].update(y=np.zeros(7, np.int32)), "batch sizes differ"),
    ],
)
def test_wrong_batches_are_named(break_it, message):
    batch = toy.batch()
    break_it(batch)
    with pytest.raises(ConfigError, match=message):
        toy.SPEC.check(batch)


def test_clean_stops_every_filler():
    inputs = toy.batch()["inputs"]
    assert np.isnan(inputs["image"]["x"]).any()
    cleaned = clean(inputs)
    for name, entry in cleaned.items():
        absent = ~inputs[name]["present"]
        assert np.isfinite(np.asarray(entry["x"], np.float32)).all()
        assert not np.asarray(entry["x"])[absent].any()
    assert not np.asarray(cleaned["text"]["mask"])[~inputs["text"]["present"]].any()


def test_tokens_find_their_grid_again():
    image = Tokens.of(
        jnp.arange(24.0).reshape(1, 6, 4), jnp.ones((1, 6), bool), "image", grid=(2, 3)
    )
    text = Tokens.of(jnp.ones((1, 5, 4)), jnp.ones((1, 5), bool), "text")
    both = Tokens.join([text, image])
    np.testing.assert_array_equal(both.select("image").grid(), jnp.arange(24.0).reshape(1, 2, 3, 4))
    with pytest.raises(ConfigError, match="'audio' are not in this sequence; it has: text, image"):
        both.select("audio")


def test_mean_of_nothing_is_zero():
    tokens = Tokens(jnp.full((2, 3, 4), 7.0), jnp.array([[True, False, True], [False] * 3]))
    np.testing.assert_array_equal(tokens.mean(), [[7.0] * 4, [0.0] * 4])


@pytest.mark.parametrize("shape", [(10**15,), (2**70,), (-1,)])
def test_a_spec_that_no_memory_holds_is_one_line(shape):
    spec = Spec({"x": Modality("table", shape, "float32")}, {})
    with pytest.raises(ConfigError, match=r"spec.modalities.x: 2 rows of float32\["):
        spec.example(2)
