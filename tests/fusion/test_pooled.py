"""Fusions of pooled features: what their formulas in `test_fusions.py` do not say."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtmm_jax.batch import Tokens
from mtmm_jax.fusion.bilinear import MFB, Block, signed_sqrt, unit
from mtmm_jax.fusion.experts import (
    MixtureOfExperts,
    ProductOfExperts,
    balance_loss,
    top_k_gates,
)
from mtmm_jax.fusion.gated import FiLM, Gated
from mtmm_jax.fusion.pooled import Weighted
from mtmm_jax.fusion.tensor import LowRankTensor, Multiplicative, TensorFusion
from mtmm_jax.layers.positionwise import batch_normal
from mtmm_jax.registry import ConfigError
from tests import toy
from tests.fusion import formulas
from tests.fusion.formulas import WIDTH

# All rows of three modalities but the one of nobody, which stands first.
SOMEBODY = formulas.patterns(3).any(1)


def _apply(module, tokens, train=False):
    """Parameters, in float64, and what a module with them gives and tells; key 1 if it draws."""
    variables = toy.variables(module, tokens)

    @jax.jit
    def apply(variables, tokens, key):
        mutable = ["intermediates", "losses"]
        rngs = {"dropout": key}
        return module.apply(variables, tokens, train=train, rngs=rngs, mutable=mutable)

    result = apply(variables, tokens, jax.random.key(1))
    return formulas.float64(variables["params"]), *jax.tree.map(np.asarray, result)


def test_fixed_weights_are_renormalised_over_the_present():
    shares = {"audio": 0.5, "image": 2.0, "table": 1.5}
    params, _, state = _apply(Weighted(WIDTH, weights=shares), formulas.tokens_of(3))
    assert not any(name.startswith("score") for name in params)
    (weights,) = state["intermediates"]["modality_weights"]
    np.testing.assert_allclose(weights.sum(1), SOMEBODY, atol=1e-6)
    np.testing.assert_allclose(weights[-1], [0.125, 0.5, 0.375], atol=1e-6)
    np.testing.assert_allclose(weights[5], [0.25, 0, 0.75], atol=1e-6)  # without the image


def test_half_precision_leaves_parameters_whole():
    tokens = formulas.tokens_of(2)
    half = {m: t.replace_values(t.values.astype(jnp.bfloat16)) for m, t in tokens.items()}
    for module in (Gated(WIDTH), LowRankTensor(WIDTH), Multiplicative(WIDTH), Block(WIDTH)):
        variables = jax.eval_shape(module.init, jax.random.key(0), half)
        assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


@pytest.mark.parametrize(("modalities", "size"), [(1, 0), (2, 0), (3, 16), (4, 8)])
def test_many_modalities_are_reduced_before_they_are_multiplied(modalities, size):
    tokens = formulas.tokens_of(modalities)
    shapes = jax.eval_shape(Multiplicative(WIDTH).init, jax.random.key(0), tokens)["params"]
    assert len([name for name in shapes if name.startswith("reduce_")]) == (
        modalities if size else 0
    )
    weights = {name: leaf.shape for name, leaf in shapes.items() if name.startswith("weight_")}
    assert len(weights) == 2**modalities - 1
    assert weights["weight_" + "_x_".join(formulas.NAMES[:modalities])] == (
        *([size] * modalities if size else [8, 10][:modalities]),
        WIDTH,
    )


def test_low_rank_starts_with_xavier_factors_and_no_bias():
    module = LowRankTensor(40, rank=5)
    tokens = {"a": Tokens(np.zeros((1, 1, 59), np.float32), np.ones((1, 1), bool))}
    params = jax.device_get(jax.jit(module.init)(jax.random.key(0), tokens)["params"])
    assert params["factor_a"].shape == (5, 60, 40)
    np.testing.assert_allclose(params["factor_a"].std((1, 2)), (2 / 100) ** 0.5, rtol=0.1)
    assert not params["bias"].any()


# Roots


def test_signed_root_is_one_and_has_a_slope_everywhere():
    x = np.array([-4.0, -0.01, 0.01, 0.25, 9.0], np.float32)

    @jax.jit
    def run(x, zeros, z):
        roots, slopes = jax.vmap(jax.value_and_grad(signed_sqrt))(x)
        flat = [jax.jacobian(f)(zeros) for f in (signed_sqrt, lambda z: unit(signed_sqrt(z)))]
        return roots, slopes, flat, unit(z)

    z = np.array([[3.0, 4.0]], np.float32)
    roots, slopes, flat, one = jax.device_get(run(x, np.zeros(3, np.float32), z))
    np.testing.assert_allclose(roots, [-2, -0.1, 0.1, 0.5, 3], atol=1e-5)
    np.testing.assert_allclose(slopes[3:], [1, 1 / 6], rtol=1e-4)
    for slopes in flat:
        assert np.isfinite(slopes).all()
        assert (np.diag(slopes) > 0).all()
    np.testing.assert_allclose(one, [[0.6, 0.8]], rtol=1e-5)


@pytest.mark.parametrize(
    "module",
    [MFB(WIDTH, hidden=8), Block(WIDTH, hidden=12, chunks=4, rank=2)],
    ids=["mfb", "block"],
)
def test_zero_inputs_give_no_nan_gradient(module):
    tokens = formulas.tokens_of(2)
    tokens = {m: t.replace_values(np.zeros_like(t.values)) for m, t in tokens.items()}
    params = jax.tree.map(np.zeros_like, toy.variables(module, tokens)["params"])
    params["out"]["kernel"] += 1.0

    def loss(params, values):
        zeros = {name: tokens[name].replace_values(values[name]) for name in tokens}
        return module.apply({"params": params}, zeros).values.sum()

    values = {name: part.values for name, part in tokens.items()}
    gradients = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, values)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


# Product of experts


def test_product_of_experts_of_nothing_is_the_prior():
    tokens = formulas.tokens_of(3)
    params, _, state = _apply(ProductOfExperts(WIDTH), tokens)
    (mean,), (variance,) = state["intermediates"]["mean"], state["intermediates"]["variance"]
    np.testing.assert_array_equal(mean[0], 0)
    np.testing.assert_array_equal(variance[0], 1)
    for i in np.flatnonzero(SOMEBODY):
        expected = formulas.posterior(params, formulas.row_of(tokens, i))
        np.testing.assert_allclose((mean[i], variance[i]), expected, atol=1e-5)
        assert (variance[i] < 1).all()


def test_product_of_experts_does_not_see_an_absent_modality():
    module = ProductOfExperts(WIDTH)
    more = formulas.tokens_of(3)
    more["table"] = Tokens(more["table"].values, np.zeros_like(more["table"].mask))
    variables = toy.variables(module, more)
    less = {m: part for m, part in more.items() if m != "table"}
    own = {k: v for k, v in variables["params"].items() if not k.endswith("table")}
    apply = jax.jit(module.apply)
    there, gone = jax.device_get((apply(variables, more), apply({"params": own}, less)))
    np.testing.assert_array_equal(there.values, gone.values)
    np.testing.assert_array_equal(there.mask, gone.mask)


def test_product_of_experts_draws_in_training_and_is_held_to_the_prior():
    tokens = formulas.tokens_of(3)
    params, fused, state = _apply(ProductOfExperts(64, kl=0.5), tokens, train=True)
    (mean,), (variance,) = state["intermediates"]["mean"], state["intermediates"]["variance"]
    noise = (fused.values[:, 0] - mean) / np.sqrt(variance)
    assert abs(noise.mean()) < 0.15
    assert abs(noise.std() - 1) < 0.1
    assert np.abs(np.corrcoef(noise) - np.eye(len(SOMEBODY))).max() < 0.5

    ((total, count),) = state["losses"]["kl"]
    expected = 0.0
    for i in np.flatnonzero(SOMEBODY):
        mu, var = formulas.posterior(params, formulas.row_of(tokens, i))
        expected += 0.5 * (mu**2 + var - 1 - np.log(var)).sum()
    assert count == SOMEBODY.sum()
    np.testing.assert_allclose(total, 0.5 * expected, rtol=1e-4)

    _, fused, state = _apply(ProductOfExperts(64, sample=False, kl=0.0), tokens, train=True)
    np.testing.assert_allclose(fused.values[:, 0], mean, atol=1e-5)
    assert "losses" not in state


@pytest.mark.usefixtures("uncached")
def test_normal_draws_belong_to_the_rows():
    key = jax.random.key(3)
    several = jax.pmap(lambda key: batch_normal(key, (3, 4), "i"), axis_name="i")(
        jnp.stack([key, key])
    )
    np.testing.assert_array_equal(several.reshape(6, 4), batch_normal(key, (6, 4), None))


# Mixture of experts


@pytest.mark.parametrize("k", [1, 2, 3])
def test_gates_are_the_k_largest(k):
    p = np.random.default_rng(k).dirichlet(np.ones(3), (4, 5)).astype(np.float32)
    gates, chosen = jax.device_get(jax.jit(top_k_gates, static_argnums=1)(p, k))
    assert (chosen.sum(-1) == k).all()
    for gate, row in zip(gates.reshape(-1, 3), p.reshape(-1, 3), strict=True):
        best = np.argsort(-row)[:k]
        expected = np.zeros(3)
        expected[best] = row[best] / row[best].sum() if k > 1 else row[best]
        np.testing.assert_allclose(gate, expected, atol=1e-6)


@pytest.mark.parametrize("k", [1, 2])
def test_balance_loss_against_a_loop(k):
    rng = np.random.default_rng(k)
    p = rng.dirichlet(np.ones(4), (6, 3)).astype(np.float32)
    mask = rng.random((6, 3)) < 0.6
    run = jax.jit(lambda p, mask: balance_loss(p, top_k_gates(p, k)[1], mask, None))
    loss, count, use = jax.device_get(run(p, mask))
    uses, means, seen = np.zeros(4), np.zeros(4), 0
    for row, column in np.argwhere(mask):
        for expert in np.argsort(-p[row, column])[:k]:
            uses[expert] += 1
        means += p[row, column]
        seen += 1
    uses, means = uses / (k * seen), means / seen
    assert count == seen
    np.testing.assert_allclose(use, uses, atol=1e-6)
    np.testing.assert_allclose(loss / count, 4 * (uses * means).sum(), rtol=1e-5)


def test_balance_loss_is_one_when_even_and_largest_when_one_expert_does_all():
    mask, run = np.ones((1, 4), bool), jax.jit(lambda *given: balance_loss(*given, None))
    even = np.full((1, 4, 4), 0.25, np.float32), np.eye(4, dtype=bool)[None]
    one = np.zeros((1, 4, 4), np.float32)
    one[..., 2] = 1.0
    for (p, chosen), expected in ((even, 1.0), ((one, one > 0), 4.0)):
        loss, count, _ = jax.device_get(run(p, chosen, mask))
        np.testing.assert_allclose(loss / count, expected)
    loss, count, use = jax.device_get(run(*even, ~mask))
    assert loss == count == 0
    assert not use.any()


@pytest.mark.usefixtures("uncached")
def test_balance_loss_and_its_gradient_add_over_devices():
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(4), (6, 3)).astype(np.float32)
    mask = rng.random((6, 3)) < 0.6

    def loss(p, mask, axis_name):
        total, count, _ = balance_loss(p, top_k_gates(p, 2)[1], mask, axis_name)
        return total, count

    def run(p, mask, axis_name=None):
        return jax.value_and_grad(lambda p: loss(p, mask, axis_name), has_aux=True)(p)

    (total, count), gradient = jax.device_get(jax.jit(run)(p, mask))
    split = jax.pmap(functools.partial(run, axis_name="i"), axis_name="i")
    halves = p.reshape(2, 3, 3, 4), mask.reshape(2, 3, 3)
    (totals, counts), gradients = jax.device_get(split(*halves))
    np.testing.assert_allclose(totals.sum(), total, rtol=1e-5)
    assert counts.sum() == count
    np.testing.assert_allclose(gradients.reshape(gradient.shape), gradient, atol=1e-6)


def test_tokens_are_routed_one_by_one_and_keep_their_places():
    tokens = formulas.tokens_of(3)
    module = MixtureOfExperts(WIDTH, route="token", balance=0.5)
    params, fused, state = _apply(module, tokens, train=True)
    assert [span.name for span in fused.layout] == sorted(tokens)
    mask, mean = fused.mask, np.zeros(4)
    for name, part in tokens.items():
        own = fused.select(name)
        np.testing.assert_array_equal(own.mask, part.mask)
        for row, place in np.argwhere(part.mask):
            x = np.asarray(part.values[row, place], np.float64)
            x = formulas.dense(params[f"project_{name}"], x)
            expected = formulas.routed(params, x, 2)
            np.testing.assert_allclose(own.values[row, place], expected, atol=1e-4)
            mean += formulas.probabilities(params, x) / mask.sum()
        assert not own.values[~part.mask].any()
    seen = state["intermediates"]["routed"]
    (gates,), (use,) = seen["gates"], seen["expert_use"]
    np.testing.assert_allclose(gates.sum(-1), mask, atol=1e-6)
    chosen = gates > 0
    np.testing.assert_array_equal(chosen.sum(-1), 2 * mask)
    np.testing.assert_allclose(use, chosen.sum((0, 1)) / (2 * mask.sum()), rtol=1e-6)
    ((total, count),) = state["losses"]["routed"]["balance"]
    assert count == mask.sum()
    np.testing.assert_allclose(total / count, 0.5 * 4 * (use * mean).sum(), rtol=1e-4)


# Bad input


def _refused(message, module, tokens):
    with pytest.raises(ConfigError, match=message):
        jax.eval_shape(module().init, jax.random.key(0), tokens)


def test_bad_input_is_refused_by_name():
    two, three = formulas.tokens_of(2), formulas.tokens_of(3)
    shares = {"audio": 1.0, "image": 2.0}
    _refused(
        "model.fusion.weights: no weight for table", lambda: Weighted(WIDTH, weights=shares), three
    )
    _refused(
        "unknown modality 'imag' .*'image'",
        lambda: Weighted(WIDTH, weights={"audio": 1.0, "imag": 1.0}),
        two,
    )
    _refused(
        "model.fusion.weights.image: 0.0",
        lambda: Weighted(WIDTH, weights={"audio": 1.0, "image": 0.0}),
        two,
    )
    _refused("by_sample: True", lambda: Weighted(WIDTH, by_sample=True, weights=shares), two)
    for fusion in (Gated, FiLM, Multiplicative):
        _refused(
            "fusion.query: unknown modality 'sound'", lambda f=fusion: f(WIDTH, query="sound"), two
        )
    _refused(
        "form: unknown form 'scalar'; choices: auto",
        lambda: Multiplicative(WIDTH, "scalar"),
        two,
    )
    _refused("'vector' takes 2 .*not 3", lambda: Multiplicative(WIDTH, "vector"), three)
    _refused("'three_way' takes 3 .*not 2", lambda: Multiplicative(WIDTH, "three_way"), two)
    five = {f"m{i}": two["audio"] for i in range(5)}
    _refused("TensorFusion fuses 1 to 4 modalities, not 5: m0", lambda: TensorFusion(WIDTH), five)
    _refused(
        "Multiplicative fuses 1 to 4 modalities, not 5: m0",
        lambda: Multiplicative(WIDTH),
        five,
    )
    _refused("hidden: 50 does not divide over 20 chunks", lambda: Block(WIDTH, hidden=50), two)
    _refused("route: unknown route 'row'", lambda: MixtureOfExperts(WIDTH, route="row"), two)
    _refused("fusion.k: 5: choose from 1 to 4", lambda: MixtureOfExperts(WIDTH, k=5), two)
    _refused("balance: -1", lambda: MixtureOfExperts(WIDTH, balance=-1.0), two)
    _refused("kl: -1", lambda: ProductOfExperts(WIDTH, kl=-1.0), two)
