"""Losses beside the tasks: regularisers and the like, added with weight one and never balanced."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from mtmm_jax.balancing.core import Balancer, Evidence, Mixed, Rule, mixed_gradient
from mtmm_jax.balancing.rows import Array, PyTree, Rows, combine
from mtmm_jax.registry import whole_number


def beside(inner: Balancer, fixed: int) -> Balancer:
    """Balances the first K losses with `inner`; the `fixed` ones after them have weight 1.

    gradient = inner(g_1, .., g_K) + g_{K+1} + .. + g_{K+fixed}

    Args:
        inner: the balancer of the K tasks. Its state is that of the result.
        fixed: how many losses follow.
    """
    whole_number(fixed, "beside.fixed", least=0)
    if not fixed:
        return inner
    rule, count = inner.rule, inner.num_tasks

    def init(rows: Rows, num_tasks: int) -> PyTree:
        return rule.init(jax.tree.map(lambda x: x[:count], rows), num_tasks - fixed)

    def weigh(state: PyTree, evidence: Evidence) -> tuple[Any, PyTree]:
        first = Evidence(
            losses=evidence.losses[:count],
            present=evidence.present[:count],
            gramian=_square(evidence.gramian, count),
            grads=jax.tree.map(lambda x: x[:count], evidence.grads),
            other=_square(evidence.other, count),
        )
        verdict, state = rule.weigh(state, first)
        rest = evidence.present[count:]
        if isinstance(verdict, Mixed | dict):
            mixed = mixed_gradient(verdict, first)
            later = jax.tree.map(lambda x: x[count:], evidence.grads)
            added = combine(rest.astype(mixed.weights.dtype), later)
            gradient = {path: mixed.gradient[path] + added[path] for path in mixed.gradient}
            return Mixed(gradient, _with_ones(mixed.weights, rest)), state
        return _with_ones(jnp.where(first.present, verdict, 0), rest), state

    def observe(state: PyTree, values: Array) -> PyTree:
        return rule.observe(state, values[:count])

    wrapped = rule._replace(
        init=init, weigh=weigh, observe=None if rule.observe is None else observe
    )
    return Balancer(Rule(*wrapped), count + fixed)


def _square(table: Array | None, count: int) -> Array | None:
    return None if table is None else table[:count, :count]


def _with_ones(weights: Array, present: Array) -> Array:
    return jnp.concatenate([weights, present.astype(weights.dtype)])
