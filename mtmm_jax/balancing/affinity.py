"""Task affinity: how much one task's step helps another, measured and turned into weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp

from mtmm_jax.balancing.core import Balancer, Evidence, Rule
from mtmm_jax.balancing.diagnostics import cosines
from mtmm_jax.balancing.losses_only import rule_dtype, task_vector
from mtmm_jax.balancing.rows import Array, Rows
from mtmm_jax.registry import ConfigError


def affinity_weights(importance: Array, affinity: Array) -> Array:
    """`w_k ~ sum_j importance_j max(affinity[j, k], 0)`: a task counts by what its steps do for
    the tasks that matter, itself included. Sums to one.

    Args:
        importance: `[K]`, how much each task matters, >= 0.
        affinity: `[K, K]`, entry (j, k): what task k's step does for task j; 1 on the diagonal.
    """
    raw = importance @ jnp.maximum(affinity, 0)
    sums = raw.sum()
    return raw / jnp.where(sums > 0, sums, 1)


def lookahead_affinity(losses: Array, losses_after: Array) -> Array:
    """Fifty et al. 2021: `Z[j, k] = 1 - L_j(after a step on task k alone) / L_j`.

    Args:
        losses: `[K]`, before.
        losses_after: `[K, K]`, entry (j, k): loss of task j after a step on task k.
    """
    usable = losses != 0
    ratio = losses_after / jnp.where(usable, losses, 1)[:, None]
    return jnp.where(usable[:, None], 1 - ratio, 0)


def first_order_affinity(gramian: Array, losses: Array, step: float) -> Array:
    """The look-ahead affinity to first order, `step <g_j, g_k> / L_j`: no extra forward passes."""
    usable = losses != 0
    ratio = step * gramian / jnp.where(usable, losses, 1)[:, None]
    return jnp.where(usable[:, None], ratio, 0)


class AffinityState(NamedTuple):
    """The averaged affinity of each pair and how often the pair was seen together."""

    mean: Array
    count: Array


def affinity(
    num_tasks: int,
    importance: float | Sequence[float] = 1.0,
    decay: float = 0.9,
    matrix: Sequence[Sequence[float]] | None = None,
) -> Balancer:
    """Weights from importance and task affinity: `w = affinity_weights(importance, A)`, A the
    running mean of the gradients' cosines, or a matrix measured beforehand.

    Paper: Fifty et al., NeurIPS 2021 (affinity); Du et al. 2018 (cosines of gradients).
    Cost: the Gramian, O(K^2).
    Use it: auxiliary tasks of unknown use beside a few important ones. Not: when all tasks matter
    alike and merely differ in scale.

    Args:
        num_tasks: K.
        importance: one number or K.
        decay: of the running mean over steps, for each pair of tasks seen together.
        matrix: a fixed `[K, K]` affinity in place of the cosines.
    """
    matters = task_vector(importance, num_tasks, "affinity.importance")
    if matrix is not None and [len(row) for row in matrix] != [num_tasks] * num_tasks:
        raise ConfigError(f"affinity.matrix: must be {num_tasks} x {num_tasks}")
    fixed = None if matrix is None else tuple(tuple(float(x) for x in row) for row in matrix)

    def init(rows: Rows, num_tasks: int) -> AffinityState:
        zeros = jnp.zeros((num_tasks, num_tasks), rule_dtype(rows))
        return AffinityState(zeros, zeros.astype(jnp.int32))

    def weigh(state: AffinityState, evidence: Evidence) -> tuple[Array, AffinityState]:
        present, dtype = evidence.present, state.mean.dtype
        pairs = present[:, None] & present[None, :]
        keep = jnp.where(state.count == 0, 0, decay).astype(dtype)  # the first value counts fully
        now = cosines(evidence.gramian).astype(dtype)
        mean = jnp.where(pairs, keep * state.mean + (1 - keep) * now, state.mean)
        state = AffinityState(mean, state.count + pairs.astype(jnp.int32))
        table = mean if fixed is None else jnp.asarray(fixed, dtype)
        table = jnp.where(pairs, table, 0)
        counted = jnp.where(present, jnp.asarray(matters, dtype), 0)
        return affinity_weights(counted, table), state

    return Balancer(Rule("gramian", init, weigh), num_tasks)
