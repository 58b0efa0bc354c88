"""Learning rates over the steps: a linear warm-up, then one of `SCHEDULES`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mtmm_jax import registry
from mtmm_jax.ranges import Between, Decay, Layers, Positive, PositiveShare, Share
from mtmm_jax.registry import ConfigError, check


class Span(NamedTuple):
    """The steps that a schedule has: those of the run, less the `first` ones of the warm-up."""

    first: int
    steps: int

    @property
    def length(self) -> int:
        return self.steps - self.first


def constant(peak: float, span: Span) -> optax.Schedule:
    """`peak` to the end. With schedule-free optimisers, or when runs are to be prolonged."""
    del span
    return optax.constant_schedule(peak)


def cosine(peak: float, span: Span, *, final: Share = 0.0, where: str) -> optax.Schedule:
    """Half a cosine, `peak (final + (1 - final) (1 + cos(pi t)) / 2)` (Loshchilov, Hutter 2017).

    Args:
        final: the share of the peak that is left at the end.
    """
    return optax.cosine_decay_schedule(peak, span.length, final)


def linear(peak: float, span: Span, *, final: Share = 0.0, where: str) -> optax.Schedule:
    """A straight line down, `peak (1 - (1 - final) t)`.

    Args:
        final: the share of the peak that is left at the end.
    """
    return optax.linear_schedule(peak, peak * final, span.length)


def rsqrt(
    peak: float,
    span: Span,
    *,
    timescale: PositiveShare = 0.1,
    cooldown: Share = 0.0,
    final: Share = 0.0,
    where: str,
) -> optax.Schedule:
    """`peak sqrt(s / (s + t))`, t steps after the warm-up, then a straight line (Zhai et al. 2022).

    Until the cool-down it does not depend on the length of the run, which may be prolonged. With
    s as long as the warm-up it is the schedule of Vaswani et al. (2017).

    Args:
        timescale: s, as a share of all steps.
        cooldown: the last share of all steps, in which the rate falls in a straight line.
        final: the share of the peak that is left at the end of a cool-down.
    """
    scale = timescale * span.steps
    last = round(cooldown * span.steps)
    if final and not last:
        raise ConfigError(f"{where}.final: is reached by a cool-down, and cooldown is 0")
    if last > span.length:
        raise ConfigError(f"{where}.cooldown: {cooldown!r} and the warm-up are more than the run")
    end = final * peak

    def falling(count: Any) -> Any:
        # Not beyond the cool-down's begin, where the line takes over.
        t = jnp.minimum(jnp.asarray(count, jnp.float32), span.length - last)
        return peak * jnp.sqrt(scale / (scale + t))

    if not last:
        return falling
    line = optax.linear_schedule(float(falling(span.length - last)), end, last)
    return optax.join_schedules([falling, line], [span.length - last])


def step(
    peak: float,
    span: Span,
    *,
    boundaries: Sequence[Share] = (0.5, 0.75),
    factor: Between = 0.1,
    where: str,
) -> optax.Schedule:
    """Multiplied by `factor` at each boundary (the classical schedule of residual networks).

    Args:
        boundaries: shares of all steps, rising, after the warm-up.
        factor: above 0 and below 1.
    """
    at = [round(b * span.steps) - span.first for b in boundaries]
    if not at or sorted(set(at)) != at or at[0] <= 0 or at[-1] >= span.length:
        raise ConfigError(
            f"{where}.boundaries: {list(boundaries)} are no rising shares between the warm-up's end"
            f" ({span.first / span.steps:g}) and 1, at least one step apart"
        )
    return optax.piecewise_constant_schedule(peak, dict.fromkeys(at, factor))


def one_cycle(
    peak: float,
    span: Span,
    *,
    rise: Between = 0.3,
    first: PositiveShare = 0.04,
    final: PositiveShare = 4e-6,
    where: str,
) -> optax.Schedule:
    """Up from `first` to the peak and down to `final`, by cosines (Smith, Topin 2017).

    It rises by itself: `optimizer.warmup` stays 0.

    Args:
        rise: the share of the steps until the peak.
        first, final: shares of the peak at both ends; final 0 is not reached by factors, use
            cosine with a warm-up.
    """
    if span.first:
        raise ConfigError("optimizer.warmup: one_cycle rises by itself; set its rise, and warmup=0")
    up = int(rise * span.steps)
    if not 0 < up < span.steps:
        raise ConfigError(f"{where}.rise: {rise!r} of {span.steps} steps leaves no step on a side")
    return optax.cosine_onecycle_schedule(span.steps, peak, rise, 1 / first, first / final)


def warm_restarts(
    peak: float,
    span: Span,
    *,
    cycles: Layers = 3,
    growth: Positive = 2.0,
    final: Share = 0.0,
    where: str,
) -> optax.Schedule:
    """Cosines one after the other, each `growth` times as long (Loshchilov, Hutter 2017: SGDR).

    Args:
        cycles: how many.
        growth: 1 for cycles of equal length.
        final: the share of the peak at the end of each.
    """
    low = final
    lengths = [growth**i for i in range(cycles)]
    ends = [round(span.length * sum(lengths[: i + 1]) / sum(lengths)) for i in range(cycles)]
    sizes = [b - a for a, b in zip([0, *ends], ends, strict=False)]
    if min(sizes) < 1:
        raise ConfigError(f"{where}.cycles: {cycles} do not fit into {span.length} steps")
    parts = [optax.cosine_decay_schedule(peak, size, low) for size in sizes]
    return optax.join_schedules(parts, ends[:-1])


SCHEDULES: dict[str, Callable[..., optax.Schedule]] = {
    "constant": constant,
    "cosine": cosine,
    "linear": linear,
    "rsqrt": rsqrt,
    "step": step,
    "one_cycle": one_cycle,
    "warm_restarts": warm_restarts,
}


def build(
    spec: str | Mapping[str, Any],
    peak: float,
    warmup: float,
    steps: int,
    where: str = "optimizer.schedule",
) -> optax.Schedule:
    """A linear warm-up from 0 to `peak` over a share of the steps, then what `spec` names.

    The first step has rate 0 where there is a warm-up. After the last step the rate stays.

    Args:
        spec: a name of `SCHEDULES`, or a mapping with `kind` and that schedule's hyper-parameters,
            such as `{"kind": "cosine", "final": 0.1}`. Shares are of all steps of the run.
        peak: the learning rate.
        warmup: a share of the steps, below 1.
        steps: of the run.
        where: the place in the config.
    """
    check(warmup, Decay, "optimizer.warmup")
    first = round(warmup * steps)
    if first >= steps:
        raise ConfigError(f"optimizer.warmup: {warmup!r} of {steps} steps leaves none after it")
    rest = registry.build(SCHEDULES, spec, peak, Span(first, steps), where=where)
    if first:
        rise = optax.linear_schedule(0.0, peak, first)
        rest = optax.join_schedules([rise, rest], [first])
    return rest


def standalone(schedule: optax.Schedule) -> optax.Schedule:
    """The schedule as it may be called outside an optimiser, under strict promotion too."""

    def rate(count: Any) -> Any:
        with jax.numpy_dtype_promotion("standard"):  # Optax multiplies numbers by booleans
            return schedule(count)

    return rate
