"""Fusions of pooled features against their formulas, one row at a time, in NumPy and float64.

What is masked or absent is loud in what the fusions read, and missing in what the formulas read.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from mtmm_jax.batch import Tokens
from mtmm_jax.fusion.bilinear import MFB, MLB, Block, Tucker, signed_sqrt, unit
from mtmm_jax.fusion.experts import (
    MixtureOfExperts,
    ProductOfExperts,
    balance_loss,
    top_k_gates,
)
from mtmm_jax.fusion.gated import FiLM, Gated, GatedUnit
from mtmm_jax.fusion.pooled import Concat, Mean, Weighted
from mtmm_jax.fusion.tensor import LowRankTensor, Multiplicative, TensorFusion
from mtmm_jax.layers.dropout import batch_normal
from mtmm_jax.registry import ConfigError
from tests import toy

WIDTH = 6
SIZES = {"audio": (3, 5), "image": (4, 7), "table": (2, 4)}
ROWS = 7
# Rows 0 and 5 have everything, rows 1 to 3 lack one modality, row 4 has one, row 6 has nothing.
ABSENT = {"audio": (1, 4, 6), "image": (2, 6), "table": (3, 4, 6)}
SHARES = {"audio": 0.5, "image": 2.0, "table": 1.5}


def _tokens(count, dtype=jnp.float32):
    rng = np.random.default_rng(count)
    tokens = {}
    for name in sorted(SIZES)[:count][::-1]:  # the order of a dict says nothing
        length, width = SIZES[name]
        mask = rng.random((ROWS, length)) < 0.6
        mask[:, 0] = True
        mask[list(ABSENT[name])] = False
        values = rng.standard_normal((ROWS, length, width))
        values = np.where(mask[..., None], values, 100 + 50 * values).astype(dtype)
        tokens[name] = Tokens.of(values, mask, name)
    return tokens


def _apply(module, tokens, train=False):
    """Parameters, in float64, and what a module with them gives and tells; key 1 if it draws."""
    variables = toy.variables(module, tokens)

    @jax.jit
    def apply(variables, tokens, key):
        mutable = ["intermediates", "losses"]
        rngs = {"dropout": key}
        return module.apply(variables, tokens, train=train, rngs=rngs, mutable=mutable)

    result = apply(variables, tokens, jax.random.key(1))
    params = jax.tree.map(lambda leaf: leaf.astype(np.float64), variables["params"])
    return params, *jax.tree.map(np.asarray, result)


def _norm(params, x):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return x * params["scale"] + params["bias"]


def _pooled(params, tokens, row):
    """`{present modality: normed mean}` of one row, in the order of names."""
    pooled = {}
    for name, part in sorted(tokens.items()):
        mask = part.mask[row]
        if mask.any():
            mean = part.values[row][mask].mean(0, dtype=np.float64)
            pooled[name] = _norm(params[f"norm_{name}"], mean)
    return pooled


def _dense(params, x):
    return x @ params["kernel"] + params.get("bias", 0.0)


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


def _gelu(x):
    return x * (1 + erf(x / np.sqrt(2))) / 2


def _unit_root(z):
    root = np.sign(z) * np.sqrt(np.abs(z))
    return root / np.linalg.norm(root, axis=-1, keepdims=True)


# The formulas: `(p, x, names)`, the parameters, what is present of this row, all modalities.


def _concat(p, x, names):
    x = np.concatenate([x.get(m, p[f"absent_{m}"]) for m in names])
    return _dense(p["out"], x)


def _mean(p, x, names):
    return np.mean([_dense(p[f"value_{m}"], x[m]) for m in x], axis=0)


def _shares(p, x, names):
    return sum(SHARES[m] * _dense(p[f"value_{m}"], x[m]) for m in x) / sum(SHARES[m] for m in x)


def _by_sample(p, x, names):
    a = {m: np.exp(_dense(p[f"score_{m}"], x[m])[0]) for m in x}
    return sum(a[m] * _dense(p[f"value_{m}"], x[m]) for m in x) / sum(a.values())


def _others(p, x, query):
    rest = [_dense(p[f"value_{m}"], x[m]) for m in x if m != query]
    return np.mean(rest, axis=0) if rest else np.ones(WIDTH)


def _gated(p, x, names, query="audio"):
    gate = _sigmoid(_dense(p[f"gate_{query}"], x[query])) if query in x else 1.0
    return _dense(p["out"], gate * _others(p, x, query))


def _unit_of(p, x, names):
    h = {m: np.tanh(_dense(p[f"hidden_{m}"], x[m])) for m in x}
    read = np.concatenate([x.get(m, np.zeros(SIZES[m][1])) for m in names])
    gates = _sigmoid(_dense(p["gate"], read)).reshape(-1, WIDTH)
    if len(names) > 2:
        return sum(gates[i] * h[m] for i, m in enumerate(names) if m in x)
    if len(x) == 2:
        return gates[0] * h[names[0]] + (1 - gates[0]) * h[names[1]]
    return sum(h.values())


def _film(p, x, names, query="image"):
    gamma, beta = np.ones(WIDTH), np.zeros(WIDTH)
    if query in x:
        gamma, beta = np.split(_dense(p[f"film_{query}"], x[query]), 2)
    return _dense(p["out"], gamma * _others(p, x, query) + beta)


def _with_one(x, size):
    return np.concatenate([[1.0], np.zeros(size) if x is None else x])


def _outer(vectors):
    return functools.reduce(np.multiply.outer, vectors)


def _tensor(p, x, names):
    reduced = {m: _dense(p[f"reduce_{m}"], x[m]) for m in x}
    z = _outer([_with_one(reduced.get(m), 3) for m in names])
    return z.ravel() @ p["out"]["kernel"]


def _low_rank(p, x, names):
    """By way of the whole tensor, which the fusion never makes."""
    z = _outer([_with_one(x.get(m), SIZES[m][1]) for m in names])
    y = p["bias"].copy()
    for r, weight in enumerate(p["weights"]):
        for o in range(WIDTH):
            y[o] += weight * (z * _outer([p[f"factor_{m}"][r][:, o] for m in names])).sum()
    return y


def _matrix(p, x, names, first="audio", second="image"):
    """y = x_2^T (x_1 W + V) + x_1 U + b."""
    one, two = (x.get(m, np.zeros(SIZES[m][1])) for m in (first, second))
    weight = p[f"weight_{first}_x_{second}"]
    inner = np.tensordot(one, weight, 1) + p[f"weight_{second}"]
    return two @ inner + one @ p[f"weight_{first}"] + p["bias"]


def _three_way(p, x, names):
    """y = x_3^T A(x_1, x_2) + B(x_1, x_2)."""
    one, two, three = (x.get(m, np.zeros(SIZES[m][1])) for m in names)
    w, v = p["weight_audio_x_image_x_table"], p["weight_image_x_table"]
    a = np.tensordot(two, np.tensordot(one, w, 1) + v, 1)
    a = a + np.tensordot(one, p["weight_audio_x_table"], 1) + p["weight_table"]
    return three @ a + _matrix(p, x, names)


def _multiplicative(p, x, names):
    return _matrix(p, x, names) if len(names) == 2 else _three_way(p, x, names)


def _vector(p, x, names):
    """y = (x_1 W + V) * P x_2 + x_1 U + b, x_1 the image."""
    one = x.get("image", np.zeros(SIZES["image"][1]))
    two = x["audio"] @ p["value_audio"]["kernel"] if "audio" in x else 0.0
    return _dense(p["scale_image"], one) * two + _dense(p["shift_image"], one)


def _mlb(p, x, names):
    return _dense(
        p["out"], np.prod([np.maximum(_dense(p[f"factor_{m}"], x[m]), 0) for m in x], axis=0)
    )


def _mfb(p, x, names):
    z = np.prod([_dense(p[f"factor_{m}"], x[m]) for m in x], axis=0)
    z = np.array([z[5 * i : 5 * i + 5].sum() for i in range(8)])
    return _dense(p["out"], _unit_root(z))


def _tucker(p, x, names):
    z = np.zeros(8)
    for r in range(3):
        term = np.ones(8)
        for m in x:
            core = {k: v[..., 8 * r : 8 * r + 8] for k, v in p[f"core_{m}"].items()}
            term = term * _dense(core, _dense(p[f"project_{m}"], x[m]))
        z += term
    return _dense(p["out"], z)


def _block(p, x, names):
    u = {m: _dense(p[f"project_{m}"], x[m]) for m in x}
    chunks = []
    for c in range(4):
        z = np.zeros(3)
        for r in range(2):
            term = np.ones(3)
            for m in x:
                weight = p[f"core_{m}"][c][:, 3 * r : 3 * r + 3]
                bias = p[f"core_bias_{m}"][c][3 * r : 3 * r + 3]
                term = term * (u[m][3 * c : 3 * c + 3] @ weight + bias)
            z += term
        chunks.append(_unit_root(z))
    return _dense(p["out"], np.concatenate(chunks))


def _posterior(p, x):
    belief = {m: np.split(_dense(p[f"expert_{m}"], x[m]), 2) for m in x}
    precision = 1.0 + sum(np.exp(-b[1]) for b in belief.values())
    return sum(b[0] * np.exp(-b[1]) for b in belief.values()) / precision, 1 / precision


def _poe(p, x, names):
    return _posterior(p, x)[0]


def _probabilities(p, x):
    scores = np.exp(_norm(p["norm"], x) @ p["routed"]["router"]["kernel"])
    return scores / scores.sum()


def _routed(p, x, k):
    """x + sum_e g_e E_e(LN x)."""
    h, scores, p = _norm(p["norm"], x), _probabilities(p, x), p["routed"]
    best = np.argsort(-scores)[:k]
    y = x.copy()
    for e in best:
        gate = scores[e] / scores[best].sum() if k > 1 else scores[e]
        inner = _gelu(h @ p["up"][e] + p["up_bias"][e])
        y += gate * (inner @ p["down"][e] + p["down_bias"][e])
    return y


def _moe(p, x, names, k=2):
    return np.mean([_routed(p, _dense(p[f"project_{m}"], x[m]), k) for m in x], axis=0)


RULES = {
    "concat": (Concat(WIDTH), _concat),
    "mean": (Mean(WIDTH), _mean),
    "weighted, by sample": (Weighted(WIDTH, by_sample=True), _by_sample),
    "gated": (Gated(WIDTH), _gated),
    "gated, query": (Gated(WIDTH, query="image"), functools.partial(_gated, query="image")),
    "gated unit": (GatedUnit(WIDTH), _unit_of),
    "film": (FiLM(WIDTH, query="image"), _film),
    "tensor": (TensorFusion(WIDTH, reduced=3), _tensor),
    "low rank": (LowRankTensor(WIDTH, rank=3), _low_rank),
    "multiplicative": (Multiplicative(WIDTH, reduced=0), _multiplicative),
    "mlb": (MLB(WIDTH, hidden=8), _mlb),
    "mfb": (MFB(WIDTH, hidden=8), _mfb),
    "tucker": (Tucker(WIDTH, hidden=8, rank=3), _tucker),
    "block": (Block(WIDTH, hidden=12, chunks=4, rank=2), _block),
    "product of experts": (ProductOfExperts(WIDTH), _poe),
    "mixture of experts": (MixtureOfExperts(WIDTH), _moe),
    "mixture of experts, k=1": (MixtureOfExperts(WIDTH, k=1), functools.partial(_moe, k=1)),
}


def _check(module, formula, count):
    tokens = _tokens(count)
    params, fused, told = _apply(module, tokens)
    np.testing.assert_array_equal(
        fused.mask[:, 0], [any(p.present[row] for p in tokens.values()) for row in range(ROWS)]
    )
    assert np.isfinite(fused.values).all()
    for row in np.flatnonzero(fused.mask[:, 0]):
        expected = formula(params, _pooled(params, tokens, row), sorted(tokens))
        np.testing.assert_allclose(fused.values[row, 0], expected, atol=1e-4, err_msg=str(row))
    return params, told.get("intermediates")


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("rule", RULES)
def test_fusion_is_its_formula_whatever_is_absent(rule, count):
    _check(*RULES[rule], count)


def test_vector_form_is_its_formula():
    _check(Multiplicative(WIDTH, form="vector", query="image"), _vector, 2)


@pytest.mark.parametrize("count", [2, 3])
def test_fixed_weights_are_renormalised_over_the_present(count):
    names = sorted(SIZES)[:count]
    module = Weighted(WIDTH, weights={name: SHARES[name] for name in names})
    params, seen = _check(module, _shares, count)
    assert not any(name.startswith("score") for name in params)
    (weights,) = seen["modality_weights"]
    np.testing.assert_allclose(weights.sum(1), [1] * 6 + [0], atol=1e-6)
    np.testing.assert_allclose(weights[0], [SHARES[m] / sum(map(SHARES.get, names)) for m in names])


@pytest.mark.parametrize("rule", RULES)
def test_half_precision_goes_in_and_out(rule):
    module, _ = RULES[rule]
    variables = jax.eval_shape(module.init, jax.random.key(0), _tokens(2))
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    fused = jax.eval_shape(module.apply, variables, _tokens(2, jnp.bfloat16))
    assert fused.values.dtype == jnp.bfloat16


def test_three_modalities_are_reduced_before_they_are_multiplied():
    shapes = jax.eval_shape(Multiplicative(WIDTH).init, jax.random.key(0), _tokens(3))["params"]
    (largest,) = [leaf.shape for name, leaf in shapes.items() if name.count("_x_") == 2]
    assert largest == (16, 16, 16, WIDTH)
    shapes = jax.eval_shape(Multiplicative(WIDTH).init, jax.random.key(0), _tokens(2))["params"]
    assert not [name for name in shapes if name.startswith("reduce_")]


@pytest.mark.parametrize(
    "module",
    [
        LowRankTensor(WIDTH),  # whose factors are what a careless port leaves untrained
        Multiplicative(WIDTH, form="vector", reduced=3),
        Multiplicative(WIDTH, form="three_way", query="table", reduced=3),
        MixtureOfExperts(WIDTH, route="token", k=1),
    ],
    ids=["low rank", "vector", "three way", "token experts"],
)
def test_every_parameter_learns(module):
    tokens = _tokens(2 if getattr(module, "form", "") == "vector" else 3)
    variables = toy.variables(module, tokens)

    def loss(params):
        fused = module.apply({"params": params}, tokens)
        waves = jnp.sin(fused.values + jnp.arange(float(WIDTH)))
        return jnp.where(fused.mask[..., None], waves, 0.0).sum()

    gradient = jax.jit(jax.grad(loss))(variables["params"])
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.isfinite(leaf).all()
        assert np.abs(leaf).max() > 0, jax.tree_util.keystr(path)
    for name in SIZES if isinstance(module, LowRankTensor) else ():
        for factor in gradient[f"factor_{name}"]:  # each rank's
            assert np.abs(factor).max() > 0


def test_low_rank_starts_with_xavier_factors_and_no_bias():
    module = LowRankTensor(40, rank=5)
    tokens = {"a": Tokens(jnp.zeros((1, 1, 59)), jnp.ones((1, 1), bool))}
    params = jax.jit(module.init)(jax.random.key(0), tokens)["params"]
    assert params["factor_a"].shape == (5, 60, 40)
    np.testing.assert_allclose(params["factor_a"].std((1, 2)), (2 / 100) ** 0.5, rtol=0.1)
    assert not params["bias"].any()


# Roots


def test_signed_root_is_one_and_has_a_slope_everywhere():
    x = jnp.asarray([-4.0, -0.01, 0.01, 0.25, 9.0])
    np.testing.assert_allclose(signed_sqrt(x), [-2, -0.1, 0.1, 0.5, 3], atol=1e-5)
    slopes = jax.jit(jax.vmap(jax.grad(signed_sqrt)))(x[3:])
    np.testing.assert_allclose(slopes, [1, 1 / 6], rtol=1e-4)
    for function in (signed_sqrt, lambda z: unit(signed_sqrt(z))):
        slopes = jax.jit(jax.jacobian(function))(jnp.zeros(3))
        assert np.isfinite(slopes).all()
        assert (np.diag(slopes) > 0).all()
    np.testing.assert_allclose(unit(jnp.asarray([[3.0, 4.0]])), [[0.6, 0.8]], rtol=1e-5)


@pytest.mark.parametrize("rule", ["mfb", "block"])
def test_zero_inputs_give_no_nan_gradient(rule):
    module, _ = RULES[rule]
    tokens = {m: t.replace_values(np.zeros_like(t.values)) for m, t in _tokens(2).items()}
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
    params, seen = _check(ProductOfExperts(WIDTH), _poe, 3)
    (mean,), (variance,) = seen["mean"], seen["variance"]
    np.testing.assert_array_equal(mean[6], 0)
    np.testing.assert_array_equal(variance[6], 1)
    tokens = _tokens(3)
    for row in range(6):
        expected = _posterior(params, _pooled(params, tokens, row))
        np.testing.assert_allclose((mean[row], variance[row]), expected, atol=1e-5)
        assert (variance[row] < 1).all()


def test_product_of_experts_does_not_see_an_absent_modality():
    module = ProductOfExperts(WIDTH)
    more = _tokens(3)
    more["table"] = Tokens(more["table"].values, np.zeros_like(more["table"].mask))
    variables = toy.variables(module, more)
    less = {m: part for m, part in more.items() if m != "table"}
    own = {k: v for k, v in variables["params"].items() if not k.endswith("table")}
    apply = jax.jit(module.apply)
    there, gone = apply(variables, more), apply({"params": own}, less)
    np.testing.assert_array_equal(there.values, gone.values)
    np.testing.assert_array_equal(there.mask, gone.mask)


def test_product_of_experts_draws_in_training_and_is_held_to_the_prior():
    tokens = _tokens(2)
    params, fused, told = _apply(ProductOfExperts(64, kl=0.5), tokens, train=True)
    (mean,), (variance,) = told["intermediates"]["mean"], told["intermediates"]["variance"]
    noise = (fused.values[:, 0] - mean) / np.sqrt(variance)
    assert abs(noise.mean()) < 0.15
    assert abs(noise.std() - 1) < 0.1
    assert np.abs(np.corrcoef(noise) - np.eye(ROWS)).max() < 0.5

    ((total, count),) = told["losses"]["kl"]
    expected = 0.0
    for row in range(6):
        mu, var = _posterior(params, _pooled(params, tokens, row))
        expected += 0.5 * (mu**2 + var - 1 - np.log(var)).sum()
    assert count == 6
    np.testing.assert_allclose(total, 0.5 * expected, rtol=1e-4)

    _, fused, told = _apply(ProductOfExperts(64, sample=False, kl=0.0), tokens, train=True)
    np.testing.assert_allclose(fused.values[:, 0], mean, atol=1e-5)
    assert "losses" not in told


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
    gates, chosen = top_k_gates(jnp.asarray(p), k)
    assert (np.asarray(chosen).sum(-1) == k).all()
    for gate, row in zip(np.asarray(gates).reshape(-1, 3), p.reshape(-1, 3), strict=True):
        best = np.argsort(-row)[:k]
        expected = np.zeros(3)
        expected[best] = row[best] / row[best].sum() if k > 1 else row[best]
        np.testing.assert_allclose(gate, expected, atol=1e-6)


@pytest.mark.parametrize("k", [1, 2])
def test_balance_loss_against_a_loop(k):
    rng = np.random.default_rng(k)
    p = rng.dirichlet(np.ones(4), (6, 3)).astype(np.float32)
    mask = rng.random((6, 3)) < 0.6
    _, chosen = top_k_gates(jnp.asarray(p), k)
    loss, count, use = balance_loss(jnp.asarray(p), chosen, jnp.asarray(mask), None)
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
    mask = jnp.ones((1, 4), bool)
    even = jnp.full((1, 4, 4), 0.25), jnp.eye(4, dtype=bool)[None]
    one = jnp.zeros((1, 4, 4)).at[..., 2].set(1.0)
    for (p, chosen), expected in ((even, 1.0), ((one, one > 0), 4.0)):
        loss, count, _ = balance_loss(p, chosen, mask, None)
        np.testing.assert_allclose(loss / count, expected)
    loss, count, use = balance_loss(*even, ~mask, None)
    assert loss == count == 0
    assert not use.any()


@pytest.mark.usefixtures("uncached")
def test_balance_loss_and_its_gradient_add_over_devices():
    rng = np.random.default_rng(0)
    p = jnp.asarray(rng.dirichlet(np.ones(4), (6, 3)), jnp.float32)
    mask = jnp.asarray(rng.random((6, 3)) < 0.6)

    def loss(p, mask, axis_name):
        total, count, _ = balance_loss(p, top_k_gates(p, 2)[1], mask, axis_name)
        return total, count

    def run(p, mask, axis_name=None):
        return jax.value_and_grad(lambda p: loss(p, mask, axis_name), has_aux=True)(p)

    (total, count), gradient = run(p, mask)
    split = jax.pmap(functools.partial(run, axis_name="i"), axis_name="i")
    (totals, counts), gradients = split(p.reshape(2, 3, 3, 4), mask.reshape(2, 3, 3))
    np.testing.assert_allclose(totals.sum(), total, rtol=1e-5)
    assert counts.sum() == count
    np.testing.assert_allclose(gradients.reshape(gradient.shape), gradient, atol=1e-6)


def test_tokens_are_routed_one_by_one_and_keep_their_places():
    tokens = _tokens(3)
    module = MixtureOfExperts(WIDTH, route="token", balance=0.5)
    params, fused, told = _apply(module, tokens, train=True)
    assert [span.name for span in fused.layout] == sorted(tokens)
    mask, mean = fused.mask, np.zeros(4)
    for name, part in tokens.items():
        own = fused.select(name)
        np.testing.assert_array_equal(own.mask, part.mask)
        for row, place in np.argwhere(part.mask):
            x = _dense(params[f"project_{name}"], part.values[row, place].astype(np.float64))
            np.testing.assert_allclose(own.values[row, place], _routed(params, x, 2), atol=1e-4)
            mean += _probabilities(params, x) / mask.sum()
        assert not own.values[~part.mask].any()
    seen = told["intermediates"]["routed"]
    (gates,), (use,) = seen["gates"], seen["expert_use"]
    np.testing.assert_allclose(gates.sum(-1), mask, atol=1e-6)
    chosen = gates > 0
    np.testing.assert_array_equal(chosen.sum(-1), 2 * mask)
    np.testing.assert_allclose(use, chosen.sum((0, 1)) / (2 * mask.sum()), rtol=1e-6)
    ((total, count),) = told["losses"]["routed"]["balance"]
    assert count == mask.sum()
    np.testing.assert_allclose(total / count, 0.5 * 4 * (use * mean).sum(), rtol=1e-4)


# Bad input


def _refused(message, module, tokens):
    with pytest.raises(ConfigError, match=message):
        jax.eval_shape(module.init, jax.random.key(0), tokens)


def test_bad_input_is_refused_by_name():
    two, three = _tokens(2), _tokens(3)
    shares = {"audio": 1.0, "image": 2.0}
    _refused("model.fusion.weights: no weight for table", Weighted(WIDTH, weights=shares), three)
    _refused(
        "unknown modality 'imag' .*'image'",
        Weighted(WIDTH, weights={"audio": 1.0, "imag": 1.0}),
        two,
    )
    _refused(
        "model.fusion.weights.image: 0.0",
        Weighted(WIDTH, weights={"audio": 1.0, "image": 0.0}),
        two,
    )
    _refused("by_sample: True", Weighted(WIDTH, by_sample=True, weights=shares), two)
    for fusion in (Gated, FiLM, Multiplicative):
        _refused("fusion.query: unknown modality 'sound'", fusion(WIDTH, query="sound"), two)
        _refused("fuses 2 .*not 1: audio", fusion(WIDTH), _tokens(1))
    _refused("form: unknown form 'scalar'; choices: auto", Multiplicative(WIDTH, "scalar"), two)
    _refused("'vector' takes 2 .*not 3", Multiplicative(WIDTH, "vector"), three)
    _refused("'three_way' takes 3 .*not 2", Multiplicative(WIDTH, "three_way"), two)
    five = {f"m{i}": two["audio"] for i in range(5)}
    _refused("TensorFusion fuses 1 to 4 modalities, not 5: m0", TensorFusion(WIDTH), five)
    _refused("hidden: 50 does not divide over 20 chunks", Block(WIDTH, hidden=50), two)
    _refused("route: unknown route 'row'", MixtureOfExperts(WIDTH, route="row"), two)
    _refused("fusion.k: 5: choose from 1 to 4", MixtureOfExperts(WIDTH, k=5), two)
    _refused("balance: -1", MixtureOfExperts(WIDTH, balance=-1.0), two)
    _refused("kl: -1", ProductOfExperts(WIDTH, kl=-1.0), two)
