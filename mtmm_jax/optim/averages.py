"""Parameters to evaluate: averages over the steps, kept in the optimiser's state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mtmm_jax.balancing.pacing import averaging_share
from mtmm_jax.paths import by_path

PyTree = Any


class AverageState(NamedTuple):
    """The average of the parameters, and of how many steps."""

    steps: jax.Array
    average: PyTree


def averaged(decay: float) -> optax.GradientTransformationExtraArgs:
    """Keeps an exponential mean of the parameters after each step; changes no update.

    `a_n = a_{n-1} + s_n (p_n - a_{n-1})`, `s_n = (1 - decay) / (1 - decay^n)`: with bias
    correction, so that the initial parameters have no part in it (averages of the iterates: Polyak,
    Juditsky 1992). Stands last in a chain. Cost: one copy of the parameters.
    """

    def init(params: PyTree) -> AverageState:
        return AverageState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.copy, params))

    def update(updates: PyTree, state: AverageState, params: PyTree, **extra: Any):
        del extra
        new, steps = optax.apply_updates(params, updates), state.steps + 1
        share = averaging_share(decay, steps)
        mean = jax.tree.map(lambda a, p: a + share.astype(a.dtype) * (p - a), state.average, new)
        return updates, AverageState(steps, mean)

    return optax.GradientTransformationExtraArgs(init, update)


def evaluation_params(optimizer_state: PyTree, params: PyTree) -> PyTree:
    """The parameters to evaluate and predict with: the average, if the optimiser keeps one (`ema`,
    schedule_free), else `params` themselves. The state may be replicated, as `params` then is."""

    def keeps(node: Any) -> bool:
        return isinstance(node, AverageState | optax.contrib.ScheduleFreeState)

    found = [n for n in jax.tree.leaves(optimizer_state, is_leaf=keeps) if keeps(n)]
    if not found:
        return params
    if isinstance(found[0], AverageState):
        return found[0].average
    return _schedule_free_params(found[0], params)


def masked_averages(optimizer_state: PyTree, masks: Mapping[str, jax.Array]) -> PyTree:
    """The state with zeros in what it averages (`ema`, schedule_free's z) where a mask, by path, is
    False: together with parameters that are zero there, what is evaluated is zero as well."""

    def zeroed(tree: PyTree) -> PyTree:
        return by_path(lambda p, x: jnp.where(masks[p], x, 0) if p in masks else x, tree)

    def one(node: Any) -> Any:
        if isinstance(node, AverageState):
            return node._replace(average=zeroed(node.average))
        if isinstance(node, optax.contrib.ScheduleFreeState):
            return node._replace(z=zeroed(node.z))
        return node

    def keeps(node: Any) -> bool:
        return isinstance(node, AverageState | optax.contrib.ScheduleFreeState)

    return jax.tree.map(one, optimizer_state, is_leaf=keeps)


@jax.jit
def _schedule_free_params(state: optax.contrib.ScheduleFreeState, params: PyTree) -> PyTree:
    read = optax.contrib.schedule_free_eval_params
    read = jax.vmap(read) if state.b1.ndim else read
    # What never moved, such as frozen parameters, is the same to the last bit.
    still = lambda x, y, z: jnp.where(y == z, y, x)  # noqa: E731
    return jax.tree.map(still, read(state, params), params, state.z)
