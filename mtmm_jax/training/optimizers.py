"""Optimisers from a config: schedule, clipping and weight decay around an Optax rule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import optax

from mtmm_jax import registry
from mtmm_jax.registry import ConfigError, choose


def _adamw(rate: Any, *, weight_decay: float = 0.0, b1: float = 0.9, b2: float = 0.999):
    # Norms, biases and single numbers are not decayed: pulling them to zero is not regularisation.
    mask = lambda params: jax.tree.map(lambda p: p.ndim > 1, params)  # noqa: E731
    return optax.adamw(rate, b1=b1, b2=b2, weight_decay=weight_decay, mask=mask)


def _sgd(rate: Any, *, momentum: float = 0.0, nesterov: bool = False):
    return optax.sgd(rate, momentum=momentum or None, nesterov=nesterov)


OPTIMIZERS = {"adamw": _adamw, "sgd": _sgd}
SCHEDULES = ("constant", "cosine", "linear")


def schedule(kind: str, peak: float, warmup: float, steps: int) -> optax.Schedule:
    """A linear warm-up to `peak` over a share of the steps, then constant, or down to zero."""
    choose(kind, SCHEDULES, "optimizer.schedule", "schedule")
    if not 0 <= warmup < 1:
        raise ConfigError(f"optimizer.warmup: {warmup!r} is no share of the steps, in [0, 1)")
    first = round(warmup * steps)
    rest = {
        "constant": optax.constant_schedule(peak),
        "cosine": optax.cosine_decay_schedule(peak, steps - first),
        "linear": optax.linear_schedule(peak, 0.0, steps - first),
    }[kind]
    if not first:
        return rest
    return optax.join_schedules([optax.linear_schedule(0.0, peak, first), rest], [first])


def build(
    config: Mapping[str, Any], steps: int
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The optimiser of `config.optimizer` and its learning-rate schedule."""
    config = dict(config)
    rate = config.pop("learning_rate", 1e-3)
    if not isinstance(rate, int | float) or rate <= 0:
        raise ConfigError(f"optimizer.learning_rate: {rate!r} is not a number above 0")
    clip = config.pop("clip", None)
    if clip is not None and not clip > 0:
        raise ConfigError(f"optimizer.clip: {clip!r} is neither None nor a norm above 0")
    rates = schedule(config.pop("schedule", "constant"), rate, config.pop("warmup", 0.0), steps)
    rule = registry.build(OPTIMIZERS, config, rates, where="optimizer")
    return optax.chain(optax.clip_by_global_norm(clip), rule) if clip else rule, rates
