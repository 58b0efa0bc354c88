"""Methods that look at losses only: one backward pass with the weights, whatever K is.

Costs of all of them: one weighted backward; O(K) arithmetic besides.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mtmm_jax.balancing.core import Balancer, Evidence, Rule
from mtmm_jax.balancing.rows import Array, Rows, balancing_dtype, select_tasks
from mtmm_jax.registry import ConfigError

PyTree = Any


def rule_dtype(rows: Rows) -> Any:
    """The dtype of a rule's own state: that of the balancing arithmetic."""
    return balancing_dtype(*(row.dtype for row in rows.values()))


def stateless(rows: Rows, num_tasks: int) -> tuple[()]:
    """The state of a rule that remembers nothing."""
    del rows, num_tasks
    return ()


def task_vector(value: float | Sequence[float], num_tasks: int, what: str) -> tuple[float, ...]:
    """A number for all tasks, or one for each, as a tuple of K floats."""
    if isinstance(value, int | float):
        return (float(value),) * num_tasks
    values = tuple(float(v) for v in value)
    if len(values) != num_tasks:
        raise ConfigError(f"{what}: {len(values)} values for {num_tasks} tasks")
    return values


class Learned(NamedTuple):
    """One learned number per task and its inner optimiser's state, also per task."""

    values: Array
    inner: PyTree


def learned_init(inner: optax.GradientTransformation, values: Array) -> Learned:
    """One optimiser state per task, so that an absent task's moments and count stand still."""
    return Learned(values, jax.vmap(inner.init)(values))


def learned_step(
    inner: optax.GradientTransformation, learned: Learned, gradient: Array, present: Array
) -> Learned:
    """One inner step for the present tasks."""
    gradient = jnp.where(present, gradient, 0).astype(learned.values.dtype)
    with jax.numpy_dtype_promotion("standard"):  # optax.adam raises a float to an integer power
        updates, state = jax.vmap(inner.update)(gradient, learned.inner, learned.values)
    moved = Learned(learned.values + updates.astype(learned.values.dtype), state)
    return select_tasks(present, moved, learned)


def equal(num_tasks: int, reduction: str = "mean") -> Balancer:
    """Equal weights: `w_k = 1/K` (over the present tasks) or, with `reduction="sum"`, `w_k = 1`.

    Cost: one backward pass.
    Use it: first, always; tuned equal weights are a strong baseline (Kurin et al. 2022, Xin et al.
    2022). Not: when losses differ by orders of magnitude, or one task starves the others.

    Args:
        num_tasks: K.
        reduction: `"mean"` or `"sum"`.
    """
    if reduction not in ("mean", "sum"):
        raise ConfigError(f"equal.reduction: {reduction!r}; choices: mean, sum")

    def weigh(state: tuple[()], evidence: Evidence) -> tuple[Array, tuple[()]]:
        ones = evidence.present.astype(evidence.losses.dtype)
        return (ones / jnp.maximum(ones.sum(), 1) if reduction == "mean" else ones), state

    return Balancer(Rule("losses", stateless, weigh), num_tasks)


def static(num_tasks: int, weights: float | Sequence[float] = 1.0) -> Balancer:
    """Fixed weights: `w_k` as given.

    Cost: one backward pass.
    Use it: when the weights are known, from a search or from the losses' units. Not: when the
    losses' scales drift during training.

    Args:
        num_tasks: K.
        weights: one number for all tasks or K of them.
    """
    fixed = task_vector(weights, num_tasks, "static.weights")

    def weigh(state: tuple[()], evidence: Evidence) -> tuple[Array, tuple[()]]:
        # Of constants alone XLA makes a step that takes a sixth longer at forty tasks.
        return jnp.where(evidence.present, jnp.asarray(fixed, evidence.losses.dtype), 0), state

    return Balancer(Rule("losses", stateless, weigh), num_tasks)


def uncertainty(num_tasks: int, learning_rate: float = 1e-2, init: float = 0.0) -> Balancer:
    """Homoscedastic uncertainty: minimise `sum_k 1/2 e^{-s_k} L_k + 1/2 s_k`, `s_k` learned.

    The weights are `1/2 e^{-s_k}`; `s` lives in this rule's state under its own Adam, so weight
    decay and clipping of the model never touch it, and an absent task's `s_k` stands still.

    Paper: Kendall, Gal, Cipolla, CVPR 2018.
    Cost: one backward pass.
    Use it: losses are likelihoods of different units (regression beside classification). Not: with
    losses that reach zero or below, where `s_k` runs away.

    Args:
        num_tasks: K.
        learning_rate: of the inner Adam.
        init: the first `s_k`.
    """
    inner = optax.adam(learning_rate)

    def first(rows: Rows, num_tasks: int) -> Learned:
        return learned_init(inner, jnp.full((num_tasks,), init, rule_dtype(rows)))

    def weigh(state: Learned, evidence: Evidence) -> tuple[Array, Learned]:
        weights = 0.5 * jnp.exp(-state.values)
        gradient = 0.5 - weights * evidence.losses.astype(weights.dtype)
        return weights, learned_step(inner, state, gradient, evidence.present)

    return Balancer(Rule("losses", first, weigh), num_tasks)
