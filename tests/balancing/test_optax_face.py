"""Balancers in Optax chains: what may come after a balancer, and what fails before it."""

from __future__ import annotations

import jax
import numpy as np
import optax
import pytest

from mtmm_jax import balancing
from mtmm_jax.registry import ConfigError

K = 3
PARAMS = {"trunk": np.arange(4, dtype=np.float32), "head": np.ones(2, np.float32)}


def _grads(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "trunk": rng.normal(size=(K, 4)).astype(np.float32),
        "head": rng.normal(size=2).astype(np.float32),
    }


LOSSES = np.array([1.0, 2.0, 0.5], np.float32)


def _first(optimizer, params):
    """`grads -> (update, state)` of the first step."""
    return jax.jit(
        lambda grads: optimizer.update(grads, optimizer.init(params), params, losses=LOSSES)
    )


def test_rows_are_balanced_and_heads_pass_through():
    balancer, grads = balancing.cagrad(K, c=0.4), _grads()
    update, state = _first(balancer, PARAMS)(grads)
    np.testing.assert_array_equal(update["head"], grads["head"])
    expected = np.asarray(state.task_weights) @ grads["trunk"]
    np.testing.assert_allclose(update["trunk"], expected, rtol=1e-5)
    with pytest.raises(ConfigError, match=r"'trunk' has shape \(2, 4\)"):
        balancer.update(grads | {"trunk": grads["trunk"][:2]}, state, PARAMS, losses=LOSSES)


def test_chain_equals_balancing_by_hand():
    """Clipping and Adam act on the balanced gradient; weights are read by name from the chain."""
    balancer = balancing.upgrad(K)
    after = optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(0.1, momentum=0.9))
    chained = optax.chain(balancer, after)
    state, own, rest = chained.init(PARAMS), balancer.init(PARAMS), after.init(PARAMS)

    @jax.jit
    def both(grads, state, own, rest):
        got, state = chained.update(grads, state, PARAMS, losses=LOSSES)
        mixed, own = balancer.update(grads, own, PARAMS, losses=LOSSES)
        expected, rest = after.update(mixed, rest, PARAMS)
        return got, expected, (state, own, rest)

    for seed in range(3):
        got, expected, (state, own, rest) = both(_grads(seed), state, own, rest)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), got, expected)
        np.testing.assert_array_equal(balancing.current_weights(state), own.task_weights)
    with pytest.raises(ConfigError, match="no balancer"):
        balancing.current_weights(rest)


def test_clipping_before_the_balancer_hides_the_tasks_scales():
    """Clipped first, the K rows are one long vector: the result depends on how many tasks there
    are, and with MGDA, which follows the smallest gradient, it is not the clipped update."""
    grads = {"trunk": _grads()["trunk"] * np.array([[100.0], [1.0], [1.0]], np.float32)}
    params = {"trunk": PARAMS["trunk"]}
    clip = optax.clip_by_global_norm(1.0)
    updates = []
    for parts in ((balancing.mgda(K), clip), (clip, balancing.mgda(K))):
        chain = optax.chain(*parts)
        updates.append(_first(chain, params)(grads)[0]["trunk"])
    assert np.linalg.norm(updates[0]) > 0.5
    assert np.linalg.norm(updates[1]) < 0.1


def test_adam_before_the_balancer_erases_what_it_balances():
    """Adam makes every coordinate of every task about +-1: the Gramian is that of the signs."""
    grads, params = {"trunk": _grads()["trunk"]}, {"trunk": PARAMS["trunk"]}
    with jax.numpy_dtype_promotion("standard"):  # optax.adam raises a float to an integer power
        adam = optax.scale_by_adam()
        signs = jax.jit(lambda grads: adam.update(grads, adam.init(grads))[0])(grads)
    np.testing.assert_allclose(signs["trunk"], np.sign(grads["trunk"]), atol=1e-3)
    first = _first(balancing.mgda(K), params)
    right, wrong = (np.asarray(first(x)[1].task_weights) for x in (grads, signs))
    assert np.abs(right - wrong).max() > 0.05


def test_accumulation_after_the_balancer_averages_balanced_updates():
    balancer = balancing.cagrad(K)
    chain = optax.chain(balancer, optax.MultiSteps(optax.sgd(1.0), 2).gradient_transformation())
    state, updates = chain.init(PARAMS), []
    step = jax.jit(lambda grads, state: chain.update(grads, state, PARAMS, losses=LOSSES))
    with jax.numpy_dtype_promotion("standard"):  # inside optax.MultiSteps
        for seed in range(2):
            update, state = step(_grads(seed), state)
            updates.append(update)
    assert not np.any(updates[0]["trunk"])
    first = _first(balancer, PARAMS)
    own = [np.asarray(first(_grads(seed))[0]["trunk"]) for seed in range(2)]
    np.testing.assert_allclose(updates[1]["trunk"], -(own[0] + own[1]) / 2, rtol=1e-5)


def test_apply_if_finite_sees_only_what_balancing_could_not_repair():
    """A NaN row is left out by the balancer; a NaN in a head's own gradient skips the step."""
    inner = optax.chain(balancing.cagrad(K), optax.apply_if_finite(optax.sgd(1.0), 5))
    step = jax.jit(lambda g, s: inner.update(g, s, PARAMS, losses=LOSSES))
    grads = _grads()
    with jax.numpy_dtype_promotion("standard"):  # inside optax.apply_if_finite
        trunk, head = grads["trunk"].copy(), grads["head"].copy()
        trunk[1] = head[0] = np.nan
        bad_row = grads | {"trunk": trunk}
        update, state = step(bad_row, inner.init(PARAMS))
        assert np.any(update["trunk"])
        np.testing.assert_array_equal(state[0].absences, [0, 1, 0])
        update, state = step(grads | {"head": head}, state)
        assert not np.any(update["trunk"])
        assert int(state[1].total_notfinite) == 1


@pytest.mark.parametrize("wrapper", ["MultiSteps", "apply_if_finite"])
def test_wrappers_around_a_balancer_are_named(wrapper):
    """Rows come in, one gradient goes out: the wrapper's place is behind the balancer."""
    around = getattr(optax, wrapper)(optax.chain(balancing.cagrad(K), optax.sgd(1.0)), 2)
    message = rf"optax\.{wrapper} around a balancer.*chain\(balancer, optax\.{wrapper}"
    with (
        jax.numpy_dtype_promotion("standard"),
        pytest.raises(ConfigError, match=message),
    ):
        jax.eval_shape(lambda g: around.update(g, around.init(PARAMS), PARAMS), _grads())


def test_a_step_that_stays_bad_is_counted_and_teaches_nothing():
    balancer = balancing.uncertainty(K)
    state = balancer.init(PARAMS)
    grads = _grads() | {"head": np.full(2, np.nan, np.float32)}
    _, after = _first(balancer, PARAMS)(grads)
    assert int(after.skipped) == 1
    jax.tree.map(np.testing.assert_array_equal, after.rule, state.rule)


def test_usable_without_the_rest_of_the_house():
    import subprocess
    import sys

    code = (
        "import sys; from mtmm_jax import balancing; "
        "bad = [m for m in sys.modules if m.startswith(('flax', 'orbax', 'grain')) or "
        "m.startswith('mtmm_jax.') and not m.startswith(('mtmm_jax.balancing', "
        "'mtmm_jax.moved', 'mtmm_jax.ranges', 'mtmm_jax.registry'))]; assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
