"""Properties of every encoder: a new one is tested by being listed in its table."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtmm_jax import registry
from mtmm_jax.batch import clean
from mtmm_jax.encoders import ENCODERS
from tests import toy

WIDTH = 16


def _wavy(tokens):
    """A function of all unmasked values with a different slope in each channel."""
    waves = jnp.sin(tokens.values + jnp.arange(float(WIDTH)))
    return jnp.where(tokens.mask[..., None], waves, 0.0).sum()


READERS = [
    (kind, name)
    for kind, encoder in ENCODERS.items()
    for name, modality in toy.SPEC.modalities.items()
    if encoder.accepts(modality)
]
EVERY = pytest.mark.parametrize(("kind", "name"), READERS)
PADDED = [(kind, name) for kind, name in READERS if name in ("text", "series", "audio", "video")]


@functools.cache
def _inputs(holes):
    return jax.device_get(jax.jit(clean)(toy.batch(holes=holes)["inputs"]))


def _entry(name, holes=False):
    return dict(_inputs(holes)[name])


def _build(kind, name, **changes):
    modality = toy.SPEC.modalities[name]
    return registry.build(
        ENCODERS,
        {"kind": kind, **toy.NEEDED.get(kind, {}), **changes},
        where="test",
        width=WIDTH,
        modality=name,
        vocabulary=modality.vocabulary,
        rate=modality.rate,
        shape=modality.shape,
    )


@functools.cache
def _encoder(kind, name):
    """The module, its variables and, compiled once, `entry -> Tokens`."""
    module = _build(kind, name)
    variables, apply = toy.variables(module, _entry(name)), jax.jit(module.apply)
    return module, variables, lambda entry: jax.device_get(apply(variables, entry))


@functools.cache
def _whole(kind, name):
    """Tokens of a batch without holes."""
    return _encoder(kind, name)[2](_entry(name))


@EVERY
def test_encoder_gives_tokens_of_its_modality(kind, name):
    entry = _entry(name, holes=True)
    tokens = _encoder(kind, name)[2](entry)
    assert tokens.values.shape == (8, tokens.mask.shape[1], WIDTH)
    assert [span.name for span in tokens.layout] == [name]
    assert np.prod(tokens.layout[0].grid) == tokens.mask.shape[1]
    np.testing.assert_array_equal(tokens.present, entry["present"])
    assert np.isfinite(tokens.values).all()


@EVERY
def test_encoder_treats_rows_apart(kind, name):
    apply, entry = _encoder(kind, name)[2], _entry(name, holes=True)
    order = np.random.default_rng(0).permutation(8)
    there = apply(entry)
    back = apply(jax.tree.map(lambda x: x[order], entry))
    np.testing.assert_allclose(back.values, there.values[order], atol=1e-5)


@pytest.mark.parametrize(("kind", "name"), PADDED)
def test_padding_changes_nothing(kind, name):
    """Nor does a mask, of sound, that hides nothing else."""
    entry = _entry(name)
    mask = entry.get("mask", np.ones(entry["x"].shape[:2], bool))
    more = {"audio": 500}.get(name, 3)
    rest = ((0, 0),) * (entry["x"].ndim - 2)
    longer = {
        **entry,
        "x": np.pad(entry["x"], ((0, 0), (0, more), *rest), constant_values=7),
        "mask": np.pad(mask, ((0, 0), (0, more))),
    }
    short, long = _whole(kind, name), _encoder(kind, name)[2](longer)
    kept = short.mask
    count = kept.shape[1]
    assert not long.mask[:, count:].any()
    np.testing.assert_array_equal(long.mask[:, :count], kept)
    np.testing.assert_allclose(long.values[:, :count][kept], short.values[kept], atol=1e-5)
    if short.positions is not None:
        np.testing.assert_allclose(long.positions[:, :count], short.positions, atol=1e-6)


# The axis and how far to roll it, so that whole patches change places.
ROLLS = {"text": (1, 1), "series": (1, 1), "image": (1, 8), "video": (2, 8)}


@pytest.mark.parametrize(("kind", "name"), [x for x in READERS if x[1] in ROLLS])
def test_order_matters_but_to_a_bag(kind, name):
    entry = _entry(name)
    if "mask" in entry:
        entry["mask"] = np.ones_like(entry["mask"])
    axis, far = ROLLS[name]
    pair = entry, {**entry, "x": np.roll(entry["x"], far, axis)}
    there, back = (_encoder(kind, name)[2](entry) for entry in pair)
    assert there.mask.all()
    difference = np.abs(back.values.mean(1) - there.values.mean(1)).max(1)
    assert (difference < 1e-5).all() if kind == "text_bag" else (difference > 1e-3).all()


def test_padding_changes_no_sound():
    apply, entry = _encoder("log_mel_cnn", "audio")[2], _entry("audio")
    mask = np.broadcast_to(np.arange(1600) < 1024, (8, 1600))
    one = {**entry, "x": np.where(mask, entry["x"], 0.0), "mask": mask}
    # What lies behind the mask is silenced by `clean`; here it is not: the encoder must not hear it
    # but for the one window that reaches over the edge.
    noisy = np.where(np.arange(1600) < 1024 + 128, one["x"], 9.0).astype(np.float32)
    first, second = apply(one), apply({**one, "x": noisy})
    kept = first.mask
    assert 0 < kept.sum() < kept.size
    np.testing.assert_allclose(second.values[kept], first.values[kept], atol=1e-5)


# The Perceiver's body is one, whatever it reads, and text is what has parameters of its own.
@pytest.mark.parametrize(
    ("kind", "name"), [x for x in READERS if x[0] != "perceiver" or x[1] in ("text", "image")]
)
def test_every_parameter_of_an_encoder_learns(kind, name):
    module, variables, _ = _encoder(kind, name)
    entry, variables = _entry(name), dict(variables)
    params = variables.pop("params")
    # Noise is half of what there is to compile, and no parameter's; it is traced below.
    still = module.clone(dropout=0.0) if hasattr(module, "dropout") else module

    def loss(params):
        tokens, _ = still.apply(
            {"params": params, **variables},
            entry,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(0)},
        )
        return _wavy(tokens)

    gradient = jax.device_get(jax.jit(jax.grad(loss))(params))
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.abs(leaf).max() > 0, jax.tree_util.keystr(path)


@pytest.mark.parametrize(("kind", "name"), dict(READERS[::-1]).items())
def test_bfloat16_is_close_and_leaves_as_float32(kind, name):
    narrow, entry = _build(kind, name, dtype="bfloat16"), _entry(name)
    _, variables, _ = _encoder(kind, name)

    @jax.jit
    def halves(variables, entry):
        tokens, seen = entry, []
        for half in ("stem", "first", "second"):
            tokens = narrow.apply(variables, tokens, method=half, train=False, axis_name=None)
            seen.append(tokens)
        return seen

    there, back = _whole(kind, name), jax.device_get(halves(variables, entry))
    assert [tokens.values.dtype for tokens in back] == [np.float32] * 3
    keys = dict.fromkeys(("params", "dropout"), jax.random.key(0))  # in training, with its noise
    shapes = jax.eval_shape(functools.partial(narrow.init, train=True), keys, entry)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {np.dtype("float32")}
    mask = there.mask
    wide, close = there.values[mask], back[-1].values[mask]
    error = np.abs(wide - close).max() / np.abs(wide).max()
    assert 1e-6 < error < 0.05  # and it is not float32 all the way
    np.testing.assert_array_equal(back[-1].mask, mask)


@pytest.mark.parametrize(
    ("kind", "name", "times"),
    [
        ("audio_mlp", "audio", [0.016, 0.032, 0.048]),
        ("audio_transformer", "audio", [0.016, 0.016, 0.016, 0.016, 0.08]),
        ("log_mel_cnn", "audio", [0.016, 0.016 + 16 * 0.016]),
        ("series_gru", "series", [0.0, 0.1, 0.2]),
        ("video_frames", "video", [0.0, 0.5, 1.0]),
        ("video_tubelets", "video", [0.25, 0.25, 0.25, 0.25, 1.25]),
    ],
)
def test_positions_are_seconds(kind, name, times):
    tokens = _whole(kind, name)
    np.testing.assert_allclose(tokens.positions[0, : len(times), 0], times, atol=1e-6)
