"""Augmentation inside jit: an example's own, within its range, where it is real, as on the host."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtmm_jax.batch import Modality, Spec
from mtmm_jax.data.pipeline import augment_jit
from mtmm_jax.data.pipeline.augment_jit import AUGMENTATIONS, augmenter, uniform
from mtmm_jax.data.transforms import augment
from mtmm_jax.keys import example_keys
from mtmm_jax.modalities import MODALITIES
from mtmm_jax.registry import ConfigError
from mtmm_jax.text import PADDING, UNKNOWN
from tests.made_up import packaged

RNG = np.random.default_rng(0)
B = 16
KEY = jax.random.key(3)
IDS = jnp.arange(B) * 7
INPUTS = {
    "image": RNG.uniform(-1, 1, (B, 12, 10, 3)).astype(np.float32),
    "audio": RNG.uniform(-1, 1, (B, 50)).astype(np.float32),
    "series": RNG.standard_normal((B, 20, 6)).astype(np.float32),
    "text": np.where(np.arange(9) < 6, RNG.integers(2, 30, (B, 9)), PADDING).astype(np.int32),
    "table": RNG.standard_normal((B, 5)).astype(np.float32),
}
SPEC = Spec({k: Modality(k, x.shape[1:], x.dtype.name) for k, x in INPUTS.items()}, {})


def _input(kind):
    """A batch of a kind of modality: of one that is not listed any numbers."""
    shape = (B, 7, 6, 5)[: 1 + MODALITIES[kind].dimensions]
    return INPUTS.get(kind, RNG.standard_normal(shape).astype(np.float32))


CASES = [(name, row.takes[0]) for name, row in AUGMENTATIONS.items()]


KEYS, LATER = (example_keys(KEY, epoch, IDS) for epoch in range(2))
MANY = example_keys(KEY, 0, jnp.arange(400))


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_an_example_is_changed_alike_in_any_batch_and_mapped(name, kind):
    do, x = jax.jit(AUGMENTATIONS[name].apply), _input(kind)
    whole = np.asarray(do(KEYS, x))
    assert (whole.shape, whole.dtype) == (x.shape, x.dtype)
    assert not np.array_equal(whole, x)
    order = RNG.permutation(B)
    np.testing.assert_allclose(do(KEYS[order], x[order]), whole[order], atol=1e-6)
    assert not np.array_equal(do(LATER, x), whole)
    alone = jax.jit(jax.vmap(lambda key, row: do(key[None], row[None])[0]))(KEYS, x)
    np.testing.assert_allclose(alone, whole, atol=1e-6)


def test_keys_are_an_examples_in_an_epoch():
    same = jax.random.key_data(example_keys(KEY, jnp.full(B, 1), IDS))
    assert np.array_equal(same, jax.random.key_data(LATER))
    every = [jax.random.key_data(keys) for keys in (KEYS, LATER)]
    assert len(np.unique(np.concatenate(every), axis=0)) == 2 * B
    assert example_keys(KEY, 0, jnp.full(2, -1, jnp.int32)).shape == (2,)  # ids of padding


HOST = {
    "crop": (2, augment.crop),
    "flip": (1, augment.flip),
    "color": (3, augment.color),
    "cut_out": (4, augment.cut_out),
    "gain": (1, augment.gain),
    "spec_augment": (8, augment.spec_augment),
    "token_dropout": (9, augment.token_dropout),
}


@pytest.mark.parametrize("name", HOST)
def test_host_and_jit_agree_on_the_same_numbers(name):
    draws, on_host = HOST[name]
    (kind, *_) = AUGMENTATIONS[name].takes
    x, u = INPUTS[kind], np.asarray(uniform(KEYS, draws))
    host = on_host(x, u)
    assert isinstance(host, np.ndarray)
    assert host.dtype == x.dtype
    np.testing.assert_allclose(AUGMENTATIONS[name].apply(KEYS, jnp.asarray(x)), host, atol=1e-6)


def test_every_augmentation_is_compared_with_the_host():
    assert set(HOST) == set(packaged(AUGMENTATIONS)) - {"noise"}  # whose numbers are normal ones


def test_crops_are_slices_of_the_padded_picture():
    x = INPUTS["image"]
    out = np.asarray(augment_jit.crop(KEYS, jnp.asarray(x), 3, 0.5))
    at = np.floor(np.asarray(uniform(KEYS, 2)) * 7).astype(int)
    padded = np.pad(x, ((0, 0), (3, 3), (3, 3), (0, 0)), constant_values=0.5)
    for i, (top, left) in enumerate(at):
        assert np.array_equal(out[i], padded[i, top : top + 12, left : left + 10])
    assert len(np.unique(at)) > 4


def test_color_keeps_the_range_and_does_what_it_says():
    x = INPUTS["image"]
    assert np.abs(augment_jit.color(KEYS, jnp.asarray(x), 0.9, 0.9, 0.9)).max() <= 1
    grey = augment.color(x, np.array([[0.5, 0.5, 0.0]] * B, np.float32), 0, 0, 1.0)
    assert np.ptp(grey, axis=-1).max() < 1e-6
    dark = augment.color(x, np.zeros((B, 3), np.float32), 0.1, 0, 0)
    np.testing.assert_allclose(dark, np.clip(x - 0.2, -1, 1), atol=1e-6)
    flat = augment.color(x, np.zeros((B, 3), np.float32), 0, 1.0, 0)
    np.testing.assert_allclose(flat, 0, atol=1e-6)


def test_cut_out_fills_one_square_in_half_of_the_pictures():
    x = jnp.asarray(INPUTS["image"])
    out = augment_jit.cut_out(MANY, jnp.tile(x, (25, 1, 1, 1)), 0.5, fill=9.0)
    hole = np.asarray((out == 9).all(-1))
    sides = np.sqrt(hole.sum((1, 2)))
    assert set(sides.tolist()) == {0, 1, 2, 3, 4}
    assert (sides > 0).mean() == pytest.approx(0.5, abs=0.1)
    for one in hole[sides > 0][:20]:
        rows, columns = one.any(1), one.any(0)
        assert rows.sum() == columns.sum()
        assert one[np.ix_(rows, columns)].all()


def test_spec_augment_fills_whole_stretches():
    x = jnp.ones((B, 20, 6))
    out = np.asarray(augment_jit.spec_augment(KEYS, x, 0.3, 0.5, masks=1))
    steps, bands = (out == 0).all(2), (out == 0).all(1)
    assert ((out == 0) == (steps[:, :, None] | bands[:, None])).all()
    for silent, most in ((steps, 6), (bands, 3)):
        assert 0 < silent.sum(1).max() <= most
        assert (np.abs(np.diff(silent.astype(int), axis=1)).sum(1) <= 2).all()
    only_time = np.asarray(augment_jit.spec_augment(KEYS, x, 0.3, 0.0, masks=3))
    assert not (only_time == 0).all(1).any()


def test_noise_is_of_the_level_it_says():
    spread = np.asarray(augment_jit.noise(MANY, jnp.zeros((400, 50)), 0.1)).std(1)
    assert (spread == 0).mean() == pytest.approx(0.5, abs=0.1)
    assert spread.max() == pytest.approx(0.1, rel=0.4)


def test_gain_and_token_dropout():
    loud = np.asarray(augment_jit.gain(KEYS, jnp.ones((B, 4)), 0.5, 2.0))
    assert np.ptp(loud, axis=1).max() == 0
    assert 0.5 <= loud.min() < 0.9 < 1.6 < loud.max() <= 2
    x = INPUTS["text"]
    out = np.asarray(augment_jit.token_dropout(KEYS, jnp.asarray(x), 0.4))
    dropped = out != x
    assert (out[dropped] == UNKNOWN).all()
    assert not dropped[:, 6:].any()
    assert dropped[:, :6].mean() == pytest.approx(0.4, abs=0.15)


def batch():
    present = np.arange(B) % 3 > 0
    inputs = {}
    for name, x in INPUTS.items():
        filler = x.copy()
        if x.dtype == np.float32:
            filler[~present] = np.nan
        inputs[name] = {"x": filler, "present": present}
    inputs["text"]["mask"] = INPUTS["text"] != PADDING
    inputs["series"]["mask"] = np.tile(np.arange(20) < 15, (B, 1))
    return {"inputs": inputs, "targets": {}, "id": np.asarray(IDS, np.int32)}


CONFIG = {
    "image": "crop(2)|flip",
    "audio": "noise",
    "series": "spec_augment",
    "text": "token_dropout(0.5)",
}


def test_a_batch_is_augmented_where_it_is_real():
    before, augmented = batch(), augmenter(CONFIG, SPEC)
    given = (KEYS, before)
    after = jax.jit(augmented)(*given)
    after = jax.tree.map(np.asarray, after)
    SPEC.check(after)
    for name, entry in after["inputs"].items():
        old = before["inputs"][name]
        real = old["present"][:, None] & old.get("mask", True)
        real = real.reshape(real.shape + (1,) * (entry["x"].ndim - real.ndim))
        real = np.broadcast_to(real, entry["x"].shape)
        assert np.array_equal(entry["x"][~real], old["x"][~real], equal_nan=name != "text")
        assert np.isfinite(entry["x"][real]).all()
        changed = not np.array_equal(entry["x"][real], old["x"][real])
        assert changed == (name in CONFIG)
    halves = jax.pmap(augmented)(*jax.tree.map(lambda x: x.reshape(2, B // 2, *x.shape[1:]), given))
    joined = jax.tree.map(lambda x: np.asarray(x).reshape(B, *x.shape[2:]), halves)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), joined, after)


def test_steps_and_modalities_have_numbers_of_their_own():
    spec = Spec({n: Modality("image", (8, 8, 3), "float32") for n in ("a", "b")}, {})
    x = jnp.asarray(np.tile(RNG.random((1, 8, 8, 3), np.float32), (B, 1, 1, 1)))
    entry = {"x": x, "present": jnp.ones(B, bool)}
    both = augmenter({"a": "crop", "b": "crop"}, spec)(
        KEYS, {"inputs": {"a": entry, "b": entry}, "targets": {}}
    )["inputs"]
    assert not np.array_equal(both["a"]["x"], both["b"]["x"])
    once = augmenter({"a": "flip"}, spec)(KEYS, {"inputs": {"a": entry}, "targets": {}})
    twice = augmenter({"a": "flip|flip"}, spec)(KEYS, {"inputs": {"a": entry}, "targets": {}})
    flipped = [(np.asarray(b["inputs"]["a"]["x"]) != x).any((1, 2, 3)) for b in (once, twice)]
    assert not np.array_equal(*flipped)
    assert 0 < flipped[1].sum() < B


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"imag": "flip"}, "data.augment: unknown modality 'imag'.*mean 'image'"),
        ({"image": "flop"}, r"data.augment.image: character 1, `flop`: unknown augmentation"),
        ({"audio": "gain|flip"}, r"character 6, `flip`: flip takes image, not audio; choices: g"),
        ({"image": "flip(high=1)"}, "argument of flip 'high'"),
        ({"image": "crop(1.5)"}, "pad: 1.5 is not a whole number"),
    ],
)
def test_mistakes_are_named(config, message):
    with pytest.raises(ConfigError, match=message):
        augmenter(config, SPEC)
