"""Losses tier: fixed and learned weights, and scalarisations whose gradient is the weights.

Costs of all of them: one weighted backward pass, whatever K is; and O(K) arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mtmm_jax.balancing import solvers
from mtmm_jax.balancing.base import (
    Array,
    Balancer,
    Evidence,
    PyTree,
    Rows,
    Rule,
    as_number,
    rule_dtype,
    select_tasks,
    stateless,
    task_array,
    task_vector,
)
from mtmm_jax.ranges import Natural, NonNegative, Positive, Real
from mtmm_jax.registry import ConfigError

_TINY = 1e-20


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


def equal(num_tasks: int, reduction: Literal["mean", "sum"] = "mean") -> Balancer:
    """Equal weights: `w_k = 1/K` (over the present tasks) or, with `reduction="sum"`, `w_k = 1`.

    Cost: one backward pass.
    Use it: first, always; tuned equal weights are a strong baseline (Kurin et al. 2022, Xin et al.
    2022). Not: when losses differ by orders of magnitude, or one task starves the others.

    Args:
        num_tasks: K.
        reduction: `"mean"` or `"sum"`.
    """

    def weigh(state: tuple[()], evidence: Evidence) -> tuple[Array, tuple[()]]:
        present, dtype = evidence.present, evidence.losses.dtype
        weights = solvers.uniform(present, dtype) if reduction == "mean" else present.astype(dtype)
        return weights, state

    return Balancer(Rule("losses", stateless, weigh, reads_losses=False), num_tasks)


def static(num_tasks: int, weights: NonNegative | Sequence[NonNegative] = 1.0) -> Balancer:
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
        return jnp.where(evidence.present, task_array(fixed, evidence.losses.dtype), 0), state

    return Balancer(Rule("losses", stateless, weigh, reads_losses=False), num_tasks)


def _with_learned_scales(
    num_tasks: int,
    learning_rate: float,
    first: float,
    weights_of: Callable[[Array], Array],
    slope_of: Callable[[Array, Array], Array],
) -> Balancer:
    """Weights `weights_of(s)`; s, from `first`, descends along `slope_of(weights, losses)`."""
    inner = optax.adam(learning_rate)

    def init(rows: Rows, num_tasks: int) -> Learned:
        return learned_init(inner, jnp.full((num_tasks,), first, rule_dtype(rows)))

    def weigh(state: Learned, evidence: Evidence) -> tuple[Array, Learned]:
        weights = weights_of(state.values)
        slope = slope_of(weights, evidence.losses.astype(weights.dtype))
        return weights, learned_step(inner, state, slope, evidence.present)

    return Balancer(Rule("losses", init, weigh), num_tasks)


def uncertainty(num_tasks: int, learning_rate: Positive = 1e-2, init: Real = 0.0) -> Balancer:
    """Homoscedastic uncertainty: minimise `sum_k 1/2 e^{-s_k} L_k + 1/2 s_k`, `s_k` learned.

    The weights are `1/2 e^{-s_k}`; `s` lives in this rule's state under its own Adam, so weight
    decay and clipping of the model never touch it, and an absent task's `s_k` stands still.

    Paper: Kendall, Gal, Cipolla, CVPR 2018.
    Cost: one backward pass.
    Use it: losses are likelihoods of different units (regression next to classification). Not: with
    losses that reach zero or below, where `s_k` runs away.

    Args:
        num_tasks: K.
        learning_rate: of the inner Adam.
        init: the first `s_k`.
    """
    return _with_learned_scales(
        num_tasks,
        learning_rate,
        init,
        weights_of=lambda s: 0.5 * jnp.exp(-s),
        slope_of=lambda weights, losses: 0.5 - weights * losses,
    )


def imtl_l(num_tasks: int, learning_rate: Positive = 1e-2, init: Real = 0.0) -> Balancer:
    """IMTL-L: minimise `sum_k e^{s_k} L_k - s_k`, `s_k` learned: scaled losses of equal size.

    `s` lives in this rule's state under its own Adam; an absent task's `s_k` stands still.

    Paper: Liu et al., ICLR 2021.
    Cost: one backward pass.
    Use it: losses of different and drifting scales. Not: losses that reach zero.

    Args:
        num_tasks: K.
        learning_rate: of the inner Adam.
        init: the first `s_k`.
    """
    return _with_learned_scales(
        num_tasks,
        learning_rate,
        init,
        weights_of=jnp.exp,
        slope_of=lambda weights, losses: weights * losses - 1,
    )


def _scalarised(num_tasks: int, scalar: Callable[[Array, Array], Array]) -> Balancer:
    """Weights `d scalar(losses, present) / d losses`."""

    def weigh(state: tuple[()], evidence: Evidence) -> tuple[Array, tuple[()]]:
        return jax.grad(scalar)(evidence.losses, evidence.present), state

    return Balancer(Rule("losses", stateless, weigh), num_tasks)


def _norm(vector: Array) -> Array:
    """The Euclidean norm, with gradient zero at zero."""
    squared = jnp.sum(vector**2)
    return jnp.where(squared > 0, jnp.sqrt(jnp.where(squared > 0, squared, 1)), 0)


def gls(num_tasks: int) -> Balancer:
    """Geometric loss strategy: minimise `(prod_k L_k)^(1/K)`, so `w_k = loss / (K L_k)`.

    Computed as `exp(mean log L)`: products of many losses under- or overflow.

    Paper: Chennupati et al., CVPR workshops 2019.
    Cost: one backward pass.
    Use it: positive losses of different scales. Not: losses that can reach zero or below.

    Args:
        num_tasks: K.
    """

    def scalar(losses: Array, present: Array) -> Array:
        logs = jnp.where(present, jnp.log(jnp.where(present, losses, 1) + _TINY), 0)
        return jnp.exp(logs.sum() / jnp.maximum(present.sum(), 1).astype(losses.dtype))

    return _scalarised(num_tasks, scalar)


def cosmos(
    num_tasks: int,
    preference: NonNegative | Sequence[NonNegative] | None = None,
    penalty: NonNegative = 1.0,
) -> Balancer:
    """COSMOS: `r . L - lambda cos(r, L)`, for a preference ray r.

    Paper: Ruchte & Grabocka, ICDM 2021.
    Cost: one backward pass.
    Use it: a solution near a wanted ratio of losses. Not: losses of mixed sign or scale.

    Args:
        num_tasks: K.
        preference: r, one number or K of them; `1/K` over the present tasks by default.
        penalty: lambda.
    """
    ray = None if preference is None else task_vector(preference, num_tasks, "cosmos.preference")

    def scalar(losses: Array, present: Array) -> Array:
        even = solvers.uniform(present, losses.dtype)
        r = even if ray is None else jnp.where(present, task_array(ray, losses.dtype), 0)
        lengths = _norm(r) * _norm(losses)
        cosine = r @ losses / jnp.where(lengths > 0, lengths, 1)
        return r @ losses - penalty * cosine

    return _scalarised(num_tasks, scalar)


def pbi(
    num_tasks: int,
    preference: NonNegative | Sequence[NonNegative] | None = None,
    theta: NonNegative = 5.0,
    ideal: Real | Sequence[Real] = 0.0,
) -> Balancer:
    """Penalty-based boundary intersection: `d1 + theta ||(L - z*) - d1 r||`, `d1 = (L - z*) . r`,
    r the unit preference, z* the ideal point.

    Paper: Zhang & Li, IEEE TEVC 2007 (MOEA/D).
    Cost: one backward pass.
    Use it: trace a Pareto front ray by ray, concave parts included. Not: as a default; theta is
    delicate, and weights may be negative.

    Args:
        num_tasks: K.
        preference: the ray; equal by default.
        theta: how strongly to keep to the ray.
        ideal: z*.
    """
    ray = task_vector(1.0 if preference is None else preference, num_tasks, "pbi.preference")
    best = task_vector(ideal, num_tasks, "pbi.ideal")

    def scalar(losses: Array, present: Array) -> Array:
        r = jnp.where(present, task_array(ray, losses.dtype), 0)
        length = _norm(r)
        r = r / jnp.where(length > 0, length, 1)
        above = jnp.where(present, losses - task_array(best, losses.dtype), 0)
        along = above @ r
        return along + theta * _norm(above - along * r)

    return _scalarised(num_tasks, scalar)


class StchState(NamedTuple):
    """The number of warm-up steps of each task, and its mean loss over them."""

    count: Array
    nadir: Array


def stch(
    num_tasks: int,
    mu: Positive = 1.0,
    warmup: Natural = 100,
    preference: NonNegative | Sequence[NonNegative] = 1.0,
    ideal: Real | Sequence[Real] = 0.0,
    form: Literal["linear", "log"] = "linear",
    measured: Natural = 0,
) -> Balancer:
    """Smooth Tchebycheff: `mu logsumexp(lambda (L / nadir - z*) / mu)`, nadir the mean loss over a
    warm-up with `sum log L`; with `form="log"` the published code's `K mu logsumexp(log(L / nadir)
    / mu)`, which has neither preference nor ideal point.

    The linear form with `warmup=0, preference=1/K` is torchjd's.

    Paper: Lin et al., ICML 2024.
    Cost: one backward pass.
    Use it: care for the worst task, smoothly; concave fronts. Not: with losses that start near
    zero, where the nadir means nothing.

    Args:
        num_tasks: K.
        mu: smoothing; towards 0 it is the maximum.
        warmup: steps of warm-up, per task; 0 uses the losses as they are.
        preference: lambda, of the linear form.
        ideal: z*, in units of the nadir, of the linear form.
        form: `"linear"` or `"log"`.
        measured: the nadir is the mean over this many last steps of the warm-up (the published code
            warms up for five epochs and measures in the fifth); 0 for all of them.
    """
    ray = task_vector(preference, num_tasks, "stch.preference")
    best = task_vector(ideal, num_tasks, "stch.ideal")
    if form == "log" and not (preference == 1.0 and ideal == 0.0):
        raise ConfigError("stch: form='log' has neither preference nor ideal; use form='linear'")
    if isinstance(measured, int) and isinstance(warmup, int) and measured > warmup:
        raise ConfigError(f"stch.measured: {measured} of {warmup} steps of warm-up")

    def init(rows: Rows, num_tasks: int) -> StchState:
        ones = jnp.ones((num_tasks,), rule_dtype(rows))
        return StchState(jnp.zeros((num_tasks,), jnp.int32), ones)

    def weigh(state: StchState, evidence: Evidence) -> tuple[Array, StchState]:
        losses, present = evidence.losses, evidence.present
        nadir = state.nadir.astype(losses.dtype)

        def scalar(losses: Array) -> Array:
            relative = losses / nadir
            if form == "log":
                terms = jnp.log(jnp.maximum(relative, _TINY))
            else:
                terms = task_array(ray, losses.dtype) * (relative - task_array(best, losses.dtype))
            smooth = as_number(mu, losses.dtype)
            total = smooth * jax.nn.logsumexp(jnp.where(present, terms / smooth, 0), where=present)
            return total * solvers.task_count(present, losses.dtype) if form == "log" else total

        logarithmic = 1 / jnp.maximum(losses, _TINY)
        warming = state.count < warmup
        # As long as any present task is warming up, all of them are.
        any_warming = (warming & present).any()
        smooth = jax.grad(scalar)(losses)
        weights = jnp.where(any_warming, logarithmic, smooth)
        count = state.count + 1
        skipped = jnp.where(measured > 0, warmup - measured, 0)  # steps before the measurement
        share = 1 / jnp.maximum(count - skipped, 1).astype(losses.dtype)
        mean = jnp.where(state.count <= skipped, losses, nadir + share * (losses - nadir))
        learned = StchState(count, jnp.where(mean > 0, mean, 1).astype(state.nadir.dtype))
        return weights, select_tasks(present & warming, learned, state)

    return Balancer(Rule("losses", init, weigh), num_tasks)
