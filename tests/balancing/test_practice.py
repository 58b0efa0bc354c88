"""Balancers as a JAX user combines them: schedules, scan, vmap, labels, extreme scales, errors."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mtmm_jax import balancing
from mtmm_jax.benchmarks.balancing import page
from mtmm_jax.registry import ConfigError
from tests.balancing import toy
from tests.made_up import packaged

K = 3
ROWS = np.random.default_rng(0).normal(size=(K, 6)).astype(np.float32)
STATIC = {"go4align": ("num_tasks", "groups")}


def _update(optimizer, rows, params):
    return optimizer.update(
        {"x": rows},
        optimizer.init(params),
        params,
        losses=np.ones(K, np.float32),
        other={"x": rows},
    )


@pytest.mark.parametrize("kind", packaged(balancing.METHODS))
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_every_hyper_parameter_may_be_a_schedule(kind, dtype):
    """Traced, not run: numbers become arrays inside `inject_hyperparams`."""
    static = STATIC.get(kind, ("num_tasks",))
    optimizer = optax.inject_hyperparams(balancing.METHODS[kind], static_args=static)(num_tasks=K)
    params = {"x": jax.ShapeDtypeStruct((6,), dtype)}
    rows = jax.ShapeDtypeStruct((K, 6), dtype)
    with jax.numpy_dtype_promotion("standard" if dtype == jnp.bfloat16 else "strict"):
        update, _ = jax.eval_shape(lambda r, p: _update(optimizer, r, p), rows, params)
    assert update["x"].shape == (6,)
    assert update["x"].dtype == dtype


def test_schedules_chains_and_labels():
    """A schedule of c in a named chain, under `multi_transform`, in `scan` and over eight seeds,
    equals a loop of plain steps."""
    cagrad = optax.inject_hyperparams(balancing.cagrad, static_args=("num_tasks",))
    optimizer = optax.named_chain(
        ("balancer", cagrad(num_tasks=K, c=optax.linear_schedule(0.8, 0.2, 3))),
        (
            "rates",
            optax.multi_transform(
                {"slow": optax.sgd(0.1), "fast": optax.sgd(1.0)}, {"x": "slow", "y": "fast"}
            ),
        ),
    )
    params = {"x": np.zeros(6, np.float32), "y": np.zeros(2, np.float32)}
    grads = np.random.default_rng(1).normal(size=(8, 3, K, 6)).astype(np.float32)

    def seed(grads):
        def step(state, rows):
            update, state = optimizer.update({"x": rows, "y": rows[0, :2]}, state, params)
            return state, update

        state, updates = jax.lax.scan(step, optimizer.init(params), grads)
        return updates, balancing.current_weights(state)

    updates, weights = jax.jit(jax.vmap(seed))(grads)
    assert weights.shape == (8, K)
    np.testing.assert_allclose(updates["y"], -grads[:, :, 0, :2])
    for call, c in enumerate((0.8, 0.6, 0.4)):
        plain = balancing.cagrad(K, c=c)
        one = jax.jit(lambda r, b=plain: b.update({"x": r}, b.init({"x": r[0]}))[0]["x"])
        np.testing.assert_allclose(updates["x"][0, call], -0.1 * one(grads[0, call]), atol=1e-5)


@pytest.mark.parametrize("engine", ["representation", "full"])
@pytest.mark.parametrize("size", [1e20, 1e-20])
def test_gradients_of_any_size_are_kept(engine, size):
    """A loss in other units: its gradient's square leaves float32, the balanced update does not."""
    batch, params = toy.batch(), toy.params()

    def scaled(split):
        def readout(p, copies, aux, b):
            sums, counts, _ = split.readout(p, copies, aux, b)
            return sums * jnp.asarray([1, size, 1], sums.dtype), counts, None

        return balancing.Split(split.trunk, readout)

    balancer = balancing.imtl_g(K)  # directions only: the unit of a loss changes the length
    found = []
    for split in (toy.SPLIT, scaled(toy.SPLIT)):
        step = balancing.value_and_grad(split, balancer, engine=engine, shared=toy.shared_labels)
        out = jax.jit(step)(params, balancer.init(params), batch)
        assert int(out.state.absences.sum()) == 0
        flat = np.concatenate([np.ravel(x) for x in jax.tree.leaves(out.grads["trunk"])])
        found.append(flat / np.abs(flat).max())
    np.testing.assert_allclose(*found, atol=1e-3)


def test_errors_say_what_to_do():
    balancer = balancing.cagrad(K)
    state = balancer.init({"x": ROWS[0]})
    with pytest.raises(ConfigError, match="Pass `params`"):
        balancer.update({"x": ROWS, "y": ROWS[:, 0]}, state)
    with pytest.raises(ConfigError, match=r"losses: shape \(2,\); 3 tasks"):
        balancer.update({"x": ROWS}, state, losses=np.ones(2, np.float32))
    uncertain = balancing.uncertainty(K)
    with pytest.raises(ConfigError, match="reads the losses"):
        uncertain.update({"x": ROWS}, uncertain.init({"x": ROWS[0]}))
    with pytest.raises(ConfigError, match=r"static_args=\('num_tasks',\)"):
        optax.inject_hyperparams(balancing.cagrad)(num_tasks=K).init({"x": ROWS[0]})
    with pytest.raises(ConfigError, match="2 balancers"):
        balancing.current_weights((state, state))


def test_the_page_lists_the_methods():
    text = page.PAGE.read_text()
    assert text == page.rewritten(text, packaged(balancing.METHODS))


@pytest.mark.parametrize(
    "block", re.findall(r"```python\n(.*?)```", page.PAGE.read_text(), re.DOTALL)
)
def test_its_recipes_run(block):
    with jax.numpy_dtype_promotion("standard"):
        exec(compile(block, "README", "exec"), {})
