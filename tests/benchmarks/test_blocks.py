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


def test_every_encoder_reads_something():
    assert {kind for kind, _ in READERS} == set(ENCODERS)


@functools.cache
def _encoder(kind, name):
    modality = toy.SPEC.modalities[name]
    module = registry.build(
        ENCODERS,
        kind,
        where="test",
        width=WIDTH,
        modality=name,
        vocabulary=modality.vocabulary,
        rate=modality.rate,
    )
    entry = clean(toy.batch(holes=False)["inputs"])[name]
    return module, toy.variables(module, entry), jax.jit(module.apply)


@EVERY
def test_encoder_gives_tokens_of_its_modality(kind, name):
    _, variables, apply = _encoder(kind, name)
    inputs = clean(toy.batch()["inputs"])
    tokens = apply(variables, inputs[name])
    assert tokens.values.shape == (8, tokens.mask.shape[1], WIDTH)
    assert [span.name for span in tokens.layout] == [name]
    assert np.prod(tokens.layout[0].grid) == tokens.mask.shape[1]
    np.testing.assert_array_equal(tokens.present, inputs[name]["present"])
    assert np.isfinite(tokens.values).all()


@EVERY
def test_encoder_treats_rows_apart(kind, name):
    _, variables, apply = _encoder(kind, name)
    entry = clean(toy.batch()["inputs"])[name]
    order = np.random.default_rng(0).permutation(8)
    there = apply(variables, entry)
    back = apply(variables, jax.tree.map(lambda x: x[order], entry))
    np.testing.assert_allclose(back.values, there.values[order], atol=1e-5)


@pytest.mark.parametrize(("kind", "name"), PADDED)
def test_padding_changes_nothing(kind, name):
    _, variables, apply = _encoder(kind, name)
    entry = clean(toy.batch(holes=False)["inputs"])[name]
    entry.setdefault("mask", np.ones(entry["x"].shape[:2], bool))
    more = {"audio": 500}.get(name, 3)
    rest = ((0, 0),) * (entry["x"].ndim - 2)
    longer = {
        **entry,
        "x": np.pad(entry["x"], ((0, 0), (0, more), *rest), constant_values=7),
        "mask": np.pad(entry["mask"], ((0, 0), (0, more))),
    }
    short, long = apply(variables, entry), apply(variables, longer)
    kept = np.asarray(short.mask)
    count = kept.shape[1]
    assert not np.asarray(long.mask)[:, count:].any()
    np.testing.assert_array_equal(long.mask[:, :count], kept)
    np.testing.assert_allclose(long.values[:, :count][kept], short.values[kept], atol=1e-5)
    if short.positions is not None:
        np.testing.assert_allclose(long.positions[:, :count], short.positions, atol=1e-6)


# The axis and how far to roll it, so that whole patches change places.
ROLLS = {"text": (1, 1), "series": (1, 1), "image": (1, 8), "video": (2, 8)}


@pytest.mark.parametrize(("kind", "name"), [x for x in READERS if x[1] in ROLLS])
def test_order_matters_but_to_a_bag(kind, name):
    _, variables, apply = _encoder(kind, name)
    entry = clean(toy.batch(holes=False)["inputs"])[name]
    if "mask" in entry:
        entry["mask"] = np.ones_like(entry["mask"])
    axis, far = ROLLS[name]
    there = apply(variables, entry).mean()
    back = apply(variables, {**entry, "x": np.roll(entry["x"], far, axis)}).mean()
    difference = np.abs(back - there).max(1)
    assert (difference < 1e-5).all() if kind == "text_bag" else (difference > 1e-3).all()


def test_padding_changes_no_sound():
    name = "audio"
    _, variables, apply = _encoder("log_mel_cnn", name)
    entry = clean(toy.batch(holes=False)["inputs"])[name]
    mask = np.broadcast_to(np.arange(1600) < 1024, (8, 1600))
    one = {**entry, "x": np.where(mask, entry["x"], 0.0), "mask": mask}
    # What lies behind the mask is silenced by `clean`; here it is not: the encoder must not hear it
    # but for the one window that reaches over the edge.
    noisy = np.where(np.arange(1600) < 1024 + 128, one["x"], 9.0).astype(np.float32)
    first, second = apply(variables, one), apply(variables, {**one, "x": noisy})
    kept = np.asarray(first.mask)
    assert 0 < kept.sum() < kept.size
    np.testing.assert_allclose(second.values[kept], first.values[kept], atol=1e-5)


# The Perceiver's body is one, whatever it reads, and text is what has parameters of its own.
@pytest.mark.parametrize(
    ("kind", "name"), [x for x in READERS if x[0] != "perceiver" or x[1] in ("text", "image")]
)
def test_every_parameter_of_an_encoder_learns(kind, name):
    module, variables, _ = _encoder(kind, name)
    entry = clean(toy.batch(holes=False)["inputs"])[name]
    variables = dict(variables)
    params = variables.pop("params")

    def loss(params, module):
        tokens, _ = module.apply(
            {"params": params, **variables},
            entry,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(0)},
        )
        return _wavy(tokens)

    jax.eval_shape(lambda params: loss(params, module), params)
    # Noise is half of what there is to compile, and no parameter's.
    still = module.clone(dropout=0.0) if hasattr(module, "dropout") else module
    gradient = jax.jit(jax.grad(lambda params: loss(params, still)))

    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient(params)):
        assert np.abs(leaf).max() > 0, jax.tree_util.keystr(path)
