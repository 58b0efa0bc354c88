"""The samples of a batch balanced as tasks, against one Jacobian row per sample."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtmm_jax import balancing
from mtmm_jax.registry import ConfigError

B, T, IN, HIDDEN = 5, 3, 4, 2
RNG = np.random.default_rng(0)
PARAMS = {
    "a": RNG.normal(size=(IN, HIDDEN)).astype(np.float32),
    "b": RNG.normal(size=HIDDEN).astype(np.float32),
    "scale": RNG.normal(size=HIDDEN).astype(np.float32),  # no dense layer
    "head": RNG.normal(size=(HIDDEN, 1)).astype(np.float32),
}
X = RNG.normal(size=(B, T, IN)).astype(np.float32)
Y = RNG.normal(size=B).astype(np.float32)


def _trunk(params, taps, x, y):
    """A layer over places, a scale of each feature, and a layer on their mean."""
    first = x @ params["a"] + params["b"]
    hidden = jnp.tanh(first + taps["a"] if taps else first) * params["scale"]
    pooled = hidden.mean(1)
    out = pooled @ params["head"]
    return (out + taps["head"] if taps else out), None, {"a": x, "head": pooled}


def _readout(params, copies, aux, x, y):
    return (copies[0][:, 0] - y) ** 2, jnp.ones(len(y)), None


def _layers(params, x, y):
    def shape(*sizes):
        return jax.ShapeDtypeStruct(sizes, x.dtype)

    return {
        "a": balancing.Layer(shape(B, T, HIDDEN), "a", "b"),
        "head": balancing.Layer(shape(B, 1), "head", None),
    }


MODEL = balancing.Tapped(_trunk, _readout, _layers)


def test_equals_one_row_per_sample():
    """Also with a sample whose gradient is 1e19 times the others'."""
    balancer = balancing.upgrad(B)
    step = jax.jit(balancing.instance_value_and_grad(MODEL, balancer))

    @jax.jit
    def by_rows(x, y):
        losses = lambda p: _readout(p, _trunk(p, {}, x, y)[:1], None, x, y)[0]  # noqa: E731
        rows = jax.jacrev(losses)(PARAMS)
        return balancer.update(rows, balancer.init(PARAMS), PARAMS, losses=losses(PARAMS))

    far, bad = Y.copy(), Y.copy()
    far[1], bad[2] = 1e19, np.nan
    for y in (Y, far):
        out = step(PARAMS, balancer.init(PARAMS), X, y)
        expected, state = by_rows(X, y)
        np.testing.assert_array_equal(out.state.absences, state.absences)
        for name, want in expected.items():
            size = np.abs(want).max()
            np.testing.assert_allclose(out.grads[name], want, atol=1e-4 * size, err_msg=name)
    assert int(state.absences.sum()) == 0
    out = step(PARAMS, balancer.init(PARAMS), X, bad)  # reaches `scale`, which is not tapped
    assert out.state.absences.tolist() == [1] * B
    assert not any(np.any(g) for g in jax.tree.leaves(out.grads))


def test_what_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match="one task per sample"):
        balancer = balancing.upgrad(B + 1)
        step = balancing.instance_value_and_grad(MODEL, balancer)
        jax.eval_shape(step, PARAMS, balancer.init(PARAMS), X, Y)
    with pytest.raises(ConfigError, match="losses or gramian tier"):
        balancing.instance_value_and_grad(MODEL, balancing.graddrop(B))
