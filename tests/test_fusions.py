"""Properties of every fusion: a new one is tested by being listed in its table."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtmm_jax import registry
from mtmm_jax.batch import Tokens
from mtmm_jax.fusion import FUSIONS
from tests import toy

WIDTH = 16
NAMES = ("audio", "image", "table", "text")
CASES = [
    # One modality and four are the borders; they are run by CI.
    pytest.param(kind, count, marks=[pytest.mark.slow] if count in (1, 4) else [])
    for kind, fusion in FUSIONS.items()
    for count in (1, 2, 3, 4)
    if fusion.modalities[0] <= count <= (fusion.modalities[1] or 4)
]
EVERY = pytest.mark.parametrize("kind", FUSIONS)


def _tokens(modalities, holes, seed=0):
    """Rows of which every one has somebody, and with holes every modality is absent somewhere."""
    rng = np.random.default_rng(seed)
    tokens = {}
    for i, name in enumerate(NAMES[:modalities]):
        length = 3 + i
        mask = rng.random((5, length)) < 0.7
        mask[:, 0] = True
        if holes:
            mask &= (np.arange(5) % (modalities + 1) != i)[:, None] | (modalities == 1)
        positions = np.broadcast_to(np.arange(length, dtype=np.float32)[:, None], (5, length, 1))
        values = rng.standard_normal((5, length, 8 + 2 * i)).astype(np.float32)
        tokens[name] = Tokens.of(
            jnp.where(mask[..., None], values, 0.0),
            jnp.asarray(mask),
            name,
            positions=jnp.asarray(positions),
        )
    return tokens


def _wavy(tokens):
    """A function of all unmasked values with a different slope in each channel."""
    waves = jnp.sin(tokens.values.astype(jnp.float32) + jnp.arange(float(WIDTH)))
    return jnp.where(tokens.mask[..., None], waves, 0.0).sum()


@functools.cache
def _fusion(kind, modalities):
    """The module, random parameters, and one compiled function for output and gradient."""
    module = registry.build(FUSIONS, kind, where="test", width=WIDTH)
    params = toy.variables(module, _tokens(modalities, holes=False))["params"]

    def wavy(params, tokens):
        fused, seen = module.apply({"params": params}, tokens, mutable=["intermediates"])
        return _wavy(fused), (fused, seen)

    def both(params, tokens):
        gradient, (fused, seen) = jax.grad(wavy, has_aux=True)(params, tokens)
        return fused, seen, gradient

    return module, params, jax.jit(both)


def test_fusions_say_their_limits():
    for fusion in FUSIONS.values():
        fewest, most = fusion.modalities
        assert fewest >= 1
        assert most is None or most >= fewest
        assert isinstance(fusion.keeps_layout, bool)


@pytest.mark.parametrize(("kind", "modalities"), CASES)
def test_properties(kind, modalities):
    module, params, both = _fusion(kind, modalities)
    tokens = _tokens(modalities, holes=True)
    fused, seen, gradient = both(params, tokens)
    assert fused.values.shape[2] == WIDTH
    assert np.isfinite(fused.values).all()
    assert np.asarray(fused.present).all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(seen))
    kept = np.asarray(fused.mask)

    # Values of absent modalities and of masked tokens change nothing.
    loud = {
        name: dataclasses.replace(t, values=jnp.where(t.mask[..., None], t.values, 1e3))
        for name, t in tokens.items()
    }
    other, _, _ = both(params, loud)
    np.testing.assert_array_equal(kept, other.mask)
    np.testing.assert_allclose(other.values[kept], fused.values[kept], atol=1e-5)

    # Rows know nothing of each other.
    order = np.array([4, 2, 0, 1, 3])
    moved, _, _ = both(params, jax.tree.map(lambda x: x[order], tokens))
    np.testing.assert_allclose(moved.values, fused.values[order], atol=1e-5)

    if module.keeps_layout:
        for name, part in tokens.items():
            assert fused.select(name).values.shape[1] == part.values.shape[1]

    # Every parameter learns, from rows with holes or from rows without.
    _, _, whole = both(params, _tokens(modalities, holes=False))
    alone = modalities == 1  # nothing is absent, nothing is weighed
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        name = jax.tree_util.keystr(path)
        if alone and any(word in name for word in ("absent", "score", "gate", "router")):
            continue
        if "key" in name and "bias" in name:
            continue  # a constant added to all keys leaves the softmax alone
        more = functools.reduce(lambda tree, key: tree[key.key], path, whole)
        assert max(np.abs(leaf).max(), np.abs(more).max()) > 0, name


@EVERY
def test_half_precision_in_is_half_precision_through(kind):
    module, params, both = _fusion(kind, 2)
    tokens = _tokens(2, holes=True)
    fused, _, _ = both(params, tokens)
    half = {
        name: dataclasses.replace(t, values=t.values.astype(jnp.bfloat16))
        for name, t in tokens.items()
    }
    rough = jax.jit(module.apply)({"params": params}, half)
    kept = np.asarray(fused.mask)
    exact = np.asarray(fused.values, np.float32)[kept]
    error = np.abs(np.asarray(rough.values, np.float32)[kept] - exact)
    assert error.mean() < 0.05 * max(np.abs(exact).mean(), 0.1)


@EVERY
@pytest.mark.slow
def test_compiled_is_as_written(kind):
    module, params, both = _fusion(kind, 2)
    tokens = _tokens(2, holes=True)
    fused, _, _ = both(params, tokens)
    eager = module.apply({"params": params}, tokens)
    kept = np.asarray(fused.mask)
    np.testing.assert_allclose(eager.values[kept], fused.values[kept], atol=1e-5)


def test_weighted_fusion_is_its_formula():
    _, params, both = _fusion("weighted", 3)
    tokens = _tokens(3, holes=True)
    params = dict(params)
    for i, name in enumerate(tokens):
        params[f"score_{name}"] = jnp.float32(i)
    fused, seen, _ = both(params, tokens)
    expected = np.zeros((5, WIDTH))
    for row in range(5):
        total = 0.0
        for i, (name, part) in enumerate(tokens.items()):
            mask = np.asarray(part.mask[row])
            if not mask.any():
                continue
            mean = np.asarray(part.values[row], np.float64)[mask].mean(0)
            norm = params[f"norm_{name}"]
            mean = (mean - mean.mean()) / np.sqrt(mean.var() + 1e-6) * norm["scale"] + norm["bias"]
            value = mean @ params[f"value_{name}"]["kernel"] + params[f"value_{name}"]["bias"]
            expected[row] += np.exp(i) * value
            total += np.exp(i)
        expected[row] /= total
    np.testing.assert_allclose(fused.values[:, 0], expected, atol=1e-4)
    (weights,) = seen["intermediates"]["modality_weights"]
    np.testing.assert_allclose(weights.sum(-1), 1.0, atol=1e-6)
