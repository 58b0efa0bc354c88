"""Balancers as a JAX user combines them: schedules, scan, vmap, labels, extreme scales, errors."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

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


def _composed(kind):
    """A method as a user composes it: scheduled by `inject_hyperparams`, in a named chain before
    `apply_if_finite`, `MultiSteps`, `multi_transform` and `masked`."""
    static = STATIC.get(kind, ("num_tasks",))
    balancer = optax.inject_hyperparams(balancing.METHODS[kind], static_args=static)(num_tasks=K)
    labels = {"x": "slow", "y": "fast"}
    rates = optax.multi_transform({"slow": optax.sgd(0.1), "fast": optax.sgd(1.0)}, labels)
    decayed = optax.masked(optax.add_decayed_weights(0.01), {"x": True, "y": False})
    every = optax.MultiSteps(optax.chain(decayed, rates), 2).gradient_transformation()
    return optax.named_chain(("balancer", balancer), ("rest", optax.apply_if_finite(every, 3)))


def _trained(optimizer, params, rows, other):
    """Parameters after the steps that the leading axis of the rows counts, by `lax.scan`."""

    def step(carry, both):
        params, state = carry
        rows, other = both
        update, state = optimizer.update(
            {"x": rows, "y": rows[0, :2]},
            state,
            params,
            losses=jnp.ones(K, jnp.float32),
            other={"x": other, "y": other[0, :2]},
        )
        return (optax.apply_updates(params, update), state), None

    (params, state), _ = jax.lax.scan(step, (params, optimizer.init(params)), (rows, other))
    return params, state


@pytest.mark.parametrize("kind", packaged(balancing.METHODS))
def test_every_method_composes_scans_and_maps(kind):
    """Traced, not run: bfloat16 parameters, a scan over three steps, eight seeds, four devices."""
    mesh = jax.make_mesh((4,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))

    def steps(params, rows):
        return _trained(_composed(kind), params, rows, rows)[0]

    seeds = jax.vmap(steps, in_axes=(None, 0))
    mapped = jax.shard_map(
        seeds, mesh=mesh, in_specs=(P(), P("d")), out_specs=P("d"), check_vma=False
    )
    params = {"x": jax.ShapeDtypeStruct((6,), jnp.bfloat16)}
    params |= {"y": jax.ShapeDtypeStruct((2,), jnp.bfloat16)}
    rows = jax.ShapeDtypeStruct((8, 3, K, 6), jnp.bfloat16)
    with jax.numpy_dtype_promotion("standard"):
        found = jax.eval_shape(mapped, params, rows)
        rows = rows.update(shape=(4, 3, K, 6))
        pmapped = jax.eval_shape(jax.pmap(steps, in_axes=(None, 0)), params, rows)
    assert found["x"].shape == (8, 6)
    assert found["x"].dtype == jnp.bfloat16
    assert pmapped["y"].shape == (4, 2)


@pytest.mark.usefixtures("uncached")
@pytest.mark.parametrize("kind", ["uncertainty", "mgda", "moco", "conflict_free", "graddrop"])
def test_scanned_mapped_and_donated_steps_are_plain_ones(kind):
    """One method a tier: eight seeds over four devices with their states donated, against steps."""
    optimizer = _composed(kind)
    rng = np.random.default_rng(2)
    rows = rng.normal(size=(8, 4, K, 6)).astype(np.float32)
    params = {"x": rng.normal(size=6).astype(np.float32), "y": np.ones(2, np.float32)}
    mesh = jax.make_mesh((4,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    with jax.numpy_dtype_promotion("standard"):
        mapped = jax.shard_map(
            jax.vmap(lambda p, r: _trained(optimizer, p, r, r)[0]),
            mesh=mesh,
            in_specs=(P("d"), P("d")),
            out_specs=P("d"),
            check_vma=False,
        )
        stacked = jax.tree.map(lambda x: np.stack([x] * 8), params)
        copies = jax.device_put(stacked, NamedSharding(mesh, P("d")))
        found = jax.device_get(jax.jit(mapped, donate_argnums=0)(copies, rows))
        assert copies["x"].is_deleted()

        @functools.partial(jax.jit, donate_argnums=(0, 1))
        def step(params, state, rows):
            grads = {"x": rows, "y": rows[0, :2]}
            losses = jnp.ones(K, jnp.float32)
            update, state = optimizer.update(grads, state, params, losses=losses, other=grads)
            return optax.apply_updates(params, update), state

        for seed in (0, 5):
            now = jax.tree.map(jnp.array, params)
            state = jax.jit(optimizer.init)(now)
            for part in rows[seed]:
                now, state = step(now, state, part)
            for name, value in now.items():
                np.testing.assert_allclose(found[name][seed], value, atol=1e-5)


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
    for library in ("equinox", "haiku"):  # not installed with the tests
        if f"import {library}" in block:
            pytest.importorskip(library)
    with jax.numpy_dtype_promotion("standard"):
        exec(compile(block, "README", "exec"), {})


SEEDS_OF_64_TASKS = """
import jax, numpy as np
from mtmm_jax.balancing.solvers import lapack
jax.config.update("jax_enable_x64", True)
rows = np.random.default_rng(0).normal(size=(64, 64, 64))
matrices = rows @ rows.swapaxes(1, 2) + np.eye(64)

def step(matrix, b):
    matrix = matrix + 0 * b[:, None]  # of each step: not factorised once before all
    factors = [lapack.cholesky(matrix + shift * np.eye(64)) for shift in (0, 1, 2)]
    return sum(lapack.solve_factored(factor, b) for factor in factors) / 100

steps = jax.vmap(lambda matrix, b: jax.lax.fori_loop(0, 250, lambda _, b: step(matrix, b), b))
assert np.isfinite(jax.jit(steps)(matrices, rows[:, 0])).all()
"""


@pytest.mark.slow
def test_many_seeds_of_many_tasks_do_not_wait_for_each_other():
    """Batches of two LAPACK kernels at a time lock XLA's threads: see `solvers.lapack`."""
    plain = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    command = [sys.executable, "-c", SEEDS_OF_64_TASKS]
    subprocess.run(command, check=True, timeout=100, env=plain)
