"""Gradual unfreezing: parameters that begin to learn later than others.

    config.optimizer.unfreeze = [["encoders/text/block2/.*", 100], ["encoders/.*", 200]]

The first regex that matches a path says how many updates it waits; what none matches learns from
the first (Howard, Ruder 2018, ULMFiT: heads first, then layer by layer from the top).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mtmm_jax.paths import by_path, leaves, some
from mtmm_jax.ranges import Natural, Regex
from mtmm_jax.registry import ConfigError
from mtmm_jax.registry import check as check_value

PyTree = Any
Waits = tuple[tuple[str, int], ...]
Pairs = Sequence[tuple[Regex, Natural]]


def read(pairs: Pairs | None, steps: int, where: str = "optimizer.unfreeze") -> Waits:
    """`[[regex, step], ...]` of a config, checked against the length of the run."""
    check_value(pairs, Pairs | None, where)
    for i, (pattern, step) in enumerate(pairs or ()):
        if step >= steps:
            raise ConfigError(
                f"{where}[{i}]: {pattern!r} would begin after step {step}, and the run has {steps}"
                "; to keep it as it is, use optimizer.freeze"
            )
    return tuple((pattern, step) for pattern, step in pairs or ())


def check(waits: Waits, params: PyTree, where: str = "optimizer.unfreeze") -> None:
    """Raises a `ConfigError` for a rule that does nothing, and where nothing learns at first."""
    paths = list(leaves(params))
    for i, (pattern, _) in enumerate(waits):
        mine = [path for path in paths if re.fullmatch(pattern, path)]
        if not mine:
            raise ConfigError(f"{where}: {pattern!r} matches none of: {some(paths)}")
        if all(any(re.fullmatch(p, path) for p, _ in waits[:i]) for path in mine):
            raise ConfigError(f"{where}: {pattern!r} comes after rules that match all that it does")
    if waits and min(wait(waits, path) for path in paths) > 0:
        raise ConfigError(f"{where}: {[list(pair) for pair in waits]} leaves nothing to begin with")


def wait(waits: Waits, path: str) -> int:
    """After how many updates a parameter begins to learn."""
    return next((step for pattern, step in waits if re.fullmatch(pattern, path)), 0)


class Held(NamedTuple):
    """The number of updates so far."""

    steps: jax.Array


def hold(waits: Waits) -> optax.GradientTransformationExtraArgs:
    """Makes the gradients of what still waits zero: the norm that `clip` sees is of the rest."""

    def init(params: PyTree) -> Held:
        del params
        return Held(jnp.zeros((), jnp.int32))

    def update(updates: PyTree, state: Held, params: PyTree | None = None, **extra: Any):
        del params, extra

        def one(path: str, leaf: jax.Array) -> jax.Array:
            begin = wait(waits, path)
            return leaf if not begin else jnp.where(state.steps >= begin, leaf, 0)

        return by_path(one, updates), Held(state.steps + 1)

    return optax.GradientTransformationExtraArgs(init, update)


class Late(NamedTuple):
    """The number of updates so far, and the state of the rule, new until it begins."""

    steps: jax.Array
    inner: Any


def late(rule: optax.GradientTransformation, begin: int) -> optax.GradientTransformationExtraArgs:
    """A rule that begins after `begin` updates: before, updates are zero and its state is new."""
    rule = optax.with_extra_args_support(rule)

    def init(params: PyTree) -> Late:
        return Late(jnp.zeros((), jnp.int32), rule.init(params))

    def update(updates: PyTree, state: Late, params: PyTree | None = None, **extra: Any):
        awake = state.steps >= begin
        new, inner = rule.update(updates, state.inner, params, **extra)
        new = jax.tree.map(lambda u: jnp.where(awake, u, 0), new)
        inner = jax.tree.map(lambda a, b: jnp.where(awake, a, b), inner, state.inner)
        return new, Late(state.steps + 1, inner)

    return optax.GradientTransformationExtraArgs(init, update)


def staged(
    make: Callable[[optax.Schedule], optax.GradientTransformation],
    waits: Waits,
    rate: optax.Schedule,
) -> optax.GradientTransformation:
    """One copy of a rule for each beginning, for the parameters that begin then.

    Each counts its own updates, so that Adam's moments are corrected from where they begin; the
    learning rate follows the run's: `rate(count + begin)`. Costs what one rule for all does.

    Args:
        make: the rule with some schedule.
        waits: of `read`.
        rate: the run's schedule.
    """
    if not waits:
        return make(rate)
    begins = sorted({0, *(step for _, step in waits)})

    def shifted(begin: int) -> optax.Schedule:
        return lambda count: rate(count + begin)

    rules = {
        str(begin): late(make(shifted(begin)), begin) if begin else make(rate) for begin in begins
    }
    return optax.partition(rules, lambda params: by_path(lambda p, _: str(wait(waits, p)), params))
