"""Learning rates by task: a balancer around a balancer that paces its tasks, fixed or adaptive."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import jax.numpy as jnp

from mtmm_jax.balancing import solvers
from mtmm_jax.balancing.base import (
    TIERS,
    Array,
    Balancer,
    Evidence,
    PacedState,
    PyTree,
    Rows,
    WeightedGradient,
    rule_dtype,
    select_tasks,
    task_vector,
)
from mtmm_jax.balancing.wrappers import wrap
from mtmm_jax.ranges import Between, Positive, Range
from mtmm_jax.registry import ConfigError, check
from mtmm_jax.registry import build as build_entry

Power = Annotated[float, Range(0, 100, above=True)]
Ratio = Annotated[float, Range(1, 1e6, above=True)]


class Pace(NamedTuple):
    """The source of task rates.

    Attributes:
        needs: the tier of the evidence that it reads.
        init: `(num_tasks, dtype) -> state`.
        rate: `(state, Evidence) -> (r [K], state)`; r is above 0, and read where present only.
    """

    needs: str
    init: Callable[[int, Any], PyTree]
    rate: Callable[[PyTree, Evidence], tuple[Array, PyTree]]


class Running(NamedTuple):
    """A running mean of each task, over the steps that it was present in."""

    mean: Array
    steps: Array


def running_init(num_tasks: int, dtype: Any) -> Running:
    """Before the first value."""
    return Running(jnp.zeros((num_tasks,), dtype), jnp.zeros((num_tasks,), jnp.int32))


def averaging_share(decay: float, steps: Array) -> Array:
    """The weight of the n-th value in an exponential mean with bias correction.

    `m_n = m_{n-1} + s_n (x_n - m_{n-1})` with `s_n = (1 - decay) / (1 - decay^n)` is
    `sum_i decay^(n-i) x_i / sum_i decay^(n-i)`: the first value counts fully.
    """
    whole = -jnp.expm1(steps.astype(jnp.float32) * math.log(decay))
    return jnp.minimum((1 - decay) / whole, 1.0)


def running(state: Running, values: Array, present: Array, decay: float) -> Running:
    """With this step's values of the present tasks."""
    steps = state.steps + 1
    share = averaging_share(decay, steps).astype(state.mean.dtype)
    mean = state.mean + share * (values.astype(state.mean.dtype) - state.mean)
    return select_tasks(present, Running(mean, steps), state)


def mean_one(values: Array, present: Array) -> Array:
    """Scaled to a mean of 1 over the present tasks."""
    total = solvers.masked_sum(values, present)
    return values * solvers.task_count(present, values.dtype) / jnp.where(total > 0, total, 1)


def fixed(num_tasks: int, rates: Positive | Sequence[Positive], where: str = "rates") -> Pace:
    """`r_k` as given."""
    check(rates, Positive | Sequence[Positive], where)
    given = task_vector(rates, num_tasks, where)

    def rate(state: tuple[()], evidence: Evidence) -> tuple[Array, tuple[()]]:
        return jnp.asarray(given, evidence.losses.dtype), state

    return Pace("losses", lambda num_tasks, dtype: (), rate)


def gradient_norm(*, decay: Between = 0.9, power: Power = 1.0, limit: Ratio = 10.0) -> Pace:
    """Slower where gradients are long: `r_k = n_k^-power`, scaled to mean 1; n_k, the running mean
    of `|g_k|`.

    With power 1 all tasks pull equally hard, on average over some steps; two tasks then never move
    against each other's descent, since `(g_1 + g_2) g_1 >= 0` for equal norms. The running mean
    keeps what `normalised` throws away: a step with a large gradient remains a large step.

    Paper: the aim of Chen et al. (ICML 2018, GradNorm), in closed form, without learned weights.
    Cost: the norms, so the gramian tier; and K numbers.
    Use it: losses of incomparable scale. Not: when a task's gradient is short because it is done.

    Args:
        decay: of the running mean.
        power: 1 for equal pulls, less for a part of the way.
        limit: norms below the longest's `1 / limit` count as that.
    """

    def rate(state: Running, evidence: Evidence) -> tuple[Array, Running]:
        norms = evidence.geometry.norms
        state = running(state, norms, evidence.present, decay)
        longest = jnp.max(jnp.where(evidence.present, state.mean, 0))
        relative = state.mean / jnp.where(longest > 0, longest, 1)
        relative = jnp.where(longest > 0, jnp.clip(relative, 1 / limit, 1.0), 1.0)
        return mean_one(relative**-power, evidence.present), state

    return Pace("gramian", running_init, rate)


class Trend(NamedTuple):
    """Two running means of the losses."""

    fast: Running
    slow: Running


def loss_rate(
    *,
    decay: Between = 0.9,
    slow: Between = 0.99,
    power: Power = 1.0,
    limit: Ratio = 10.0,
    where: str,
) -> Pace:
    """Faster where the loss falls slowly: `r_k = (l_k / L_k)^power`, scaled to mean 1; l and L, a
    fast and a slow running mean of the loss.

    Papers: the relative training rate of Chen et al. (ICML 2018, GradNorm), measured against the
    recent past, as by Liu et al. (CVPR 2019, DWA).
    Cost: none; K numbers.
    Use it: tasks of like losses that learn at different speed. Not: with losses at or below zero,
    for which r_k is that of a loss that stands still, nor to mend incomparable scales.

    Args:
        decay, slow: of the two running means; slow is the larger one.
        power: how strongly.
        limit: of `l_k / L_k` and its inverse.
        where: the place in the config.
    """
    if not decay < slow:
        raise ConfigError(f"{where}.slow: {slow!r} is not above decay, {decay!r}")

    def init(num_tasks: int, dtype: Any) -> Trend:
        return Trend(running_init(num_tasks, dtype), running_init(num_tasks, dtype))

    def rate(state: Trend, evidence: Evidence) -> tuple[Array, Trend]:
        losses, present = evidence.losses, evidence.present
        state = Trend(
            running(state.fast, losses, present, decay), running(state.slow, losses, present, slow)
        )
        fast, before = state.fast.mean, state.slow.mean
        known = (fast > 0) & (before > 0)
        ratio = jnp.where(known, fast / jnp.where(known, before, 1), 1)
        return mean_one(jnp.clip(ratio, 1 / limit, limit) ** power, present), state

    return Pace("losses", init, rate)


PACES: dict[str, Callable[..., Pace]] = {"gradient_norm": gradient_norm, "loss_rate": loss_rate}


def paced(
    inner: Balancer,
    rates: Positive | Sequence[Positive] | str | Mapping[str, Any],
    *,
    where: str = "paced.rates",
) -> Balancer:
    """Task rates: the shared gradient is `sum_k r_k w_k g_k`, w from `inner`, which does not see r.

    A rate scales what its task does to shared parameters, after the conflict is resolved. What
    belongs to one task alone is scaled too where it gets the weighted gradient (the default of
    methods of the losses tier); under Adam, which divides by the gradient's size, that alone
    changes nothing: `optim.per_task` scales the heads' updates instead.

    A pace by gradient norms lifts a method of the losses tier to the gramian tier: its heads then
    get their own gradient, unless `head_gradients="weighted"`.

    Args:
        inner: a balancer that returns weights.
        rates: one number, K of them, or an entry of `PACES`: a name or a mapping with `kind`. An
            absent task has no part in the mean of 1 of the adaptive ones, and its state stands.
        where: the place in the config.
    """
    if isinstance(rates, str | Mapping):
        pace = build_entry(PACES, rates, where=where)
    else:
        pace = fixed(inner.num_tasks, rates, where)
    rule = inner.rule

    def init(rows: Rows, num_tasks: int) -> PacedState:
        dtype = rule_dtype(rows)
        ones = jnp.ones((num_tasks,), dtype)
        return PacedState(rule.init(rows, num_tasks), pace.init(num_tasks, dtype), ones)

    def weigh(state: PacedState, evidence: Evidence) -> tuple[Array, PacedState]:
        result, new = rule.weigh(state.inner, evidence)
        if isinstance(result, WeightedGradient | Mapping):
            raise ConfigError(f"{where}: the method returns a gradient, not weights of tasks")
        found, pace_state = pace.rate(state.pace, evidence)
        found = jnp.where(evidence.present, found.astype(state.rates.dtype), state.rates)
        return result * found.astype(result.dtype), PacedState(new, pace_state, found)

    return wrap(inner, init, weigh, max(rule.needs, pace.needs, key=TIERS.index))
