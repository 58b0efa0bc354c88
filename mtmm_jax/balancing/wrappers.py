"""Balancers around balancers: normalised, smoothed, grouped, every n steps, after a warm-up, and
with auxiliary losses."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from mtmm_jax.balancing import solvers
from mtmm_jax.balancing.base import (
    Array,
    Balancer,
    Evidence,
    Geometry,
    PyTree,
    Rows,
    WeightedGradient,
    checked_method,
    combine,
    measure,
    paths_of,
    rule_dtype,
    scale_rows,
    weighted_gradient,
)
from mtmm_jax.ranges import Count, Decay, Natural
from mtmm_jax.registry import ConfigError, check, choose


def shared_by_path(pattern: str) -> Callable[[PyTree], PyTree]:
    """For `value_and_grad(shared=...)`: the leaves whose path, `"trunk/dense/kernel"`, contains a
    match of `pattern`. A pattern that matches nothing is an error."""

    def label(params: PyTree) -> PyTree:
        paths = paths_of(params)
        labels = [re.search(pattern, path) is not None for path in paths]
        if not any(labels):
            raise ConfigError(f"shared: {pattern!r} matches none of {', '.join(paths)}")
        return jax.tree.unflatten(jax.tree.structure(params), labels)

    return label


def wrap(
    inner: Balancer,
    init: Callable[[Rows, int], PyTree],
    weigh: Callable[[PyTree, Evidence], tuple[Any, PyTree]],
    needs: str | None = None,
) -> Balancer:
    """A balancer whose state has the inner rule's under the field `inner`."""
    rule = inner.rule

    def observe(state: PyTree, values: Array) -> PyTree:
        return state._replace(inner=rule.observe(state.inner, values))

    wrapped = rule._replace(
        needs=needs or rule.needs,
        init=init,
        weigh=weigh,
        observe=None if rule.observe is None else observe,
    )
    return Balancer(wrapped, inner.num_tasks)


class NormalisedState(NamedTuple):
    """Nothing but the wrapped rule's state."""

    inner: PyTree


def normalised(inner: Balancer, by: Literal["none", "l2", "loss", "loss+"] = "l2") -> Balancer:
    """Balances `g_k / s_k` in place of `g_k`: s = `"l2"` norm, `"loss"`, or `"loss+"`, their
    product. (`"none"` changes nothing.) The norms are those of the engine: at the cut, or of the
    shared parameters.

    Args:
        inner: the balancer that sees normalised gradients.
        by: the scale.
    """
    rule = inner.rule
    if rule.needs == "losses" and by in ("l2", "loss+"):
        raise ConfigError(f"normalised.by: {by!r} needs gradients, the method losses only")

    def init(rows: Rows, num_tasks: int) -> NormalisedState:
        return NormalisedState(rule.init(rows, num_tasks))

    def inverse_scale(evidence: Evidence) -> Array:
        present, losses = evidence.present, evidence.losses
        inverse = present.astype(losses.dtype)
        if by in ("l2", "loss+"):
            norms = evidence.geometry.norms
            inverse = jnp.where(present, solvers.divide(inverse, norms), 0)
        if by in ("loss", "loss+"):
            positive = losses > 0
            inverse = inverse * jnp.where(positive, 1 / jnp.where(positive, losses, 1), 0)
        return inverse

    def weigh(state: NormalisedState, evidence: Evidence) -> tuple[Any, NormalisedState]:
        inverse = inverse_scale(evidence)
        scaled = jax.tree.map(lambda g: scale_rows(inverse, g), evidence.grads)
        other, geometry = evidence.other, evidence.geometry
        seen = evidence._replace(
            geometry=None if geometry is None else geometry.scaled(inverse),
            other=None if other is None else other * inverse[:, None] * inverse[None, :],
            grads=scaled,
        )
        result, new = rule.weigh(state.inner, seen)
        if isinstance(result, WeightedGradient):
            result = result._replace(weights=result.weights * inverse)
        elif not isinstance(result, Mapping):
            result = result * inverse
        return result, NormalisedState(new)

    wrapped = wrap(inner, init, weigh)
    reads = rule.reads_losses or by in ("loss", "loss+")
    return Balancer(wrapped.rule._replace(reads_losses=reads), inner.num_tasks)


class SmoothedState(NamedTuple):
    """The wrapped rule's state, the averaged weights, and which of them are set."""

    inner: PyTree
    weights: Array
    seen: Array


def smoothed(inner: Balancer, decay: Decay = 0.9) -> Balancer:
    """CR-MOGM: averages the weights over steps, `w <- a w + (1 - a) w_new`, which is what makes
    stochastic weightings converge (Zhou et al., NeurIPS 2022). A task's first weight counts fully.

    Args:
        inner: a balancer of the losses or gramian tier, or one that returns weights.
        decay: a.
    """
    rule = inner.rule

    def init(rows: Rows, num_tasks: int) -> SmoothedState:
        zeros = jnp.zeros((num_tasks,), rule_dtype(rows))
        return SmoothedState(rule.init(rows, num_tasks), zeros, zeros.astype(bool))

    def weigh(state: SmoothedState, evidence: Evidence) -> tuple[Array, SmoothedState]:
        result, new = rule.weigh(state.inner, evidence)
        if isinstance(result, WeightedGradient | Mapping):
            raise ConfigError("smoothed: the method returns a gradient, not weights")
        keep = jnp.where(state.seen, decay, 0).astype(state.weights.dtype)
        blended = keep * state.weights + (1 - keep) * result.astype(state.weights.dtype)
        weights = jnp.where(evidence.present, blended, state.weights)
        return weights, SmoothedState(new, weights, state.seen | evidence.present)

    return wrap(inner, init, weigh)


class EveryState(NamedTuple):
    """The wrapped rule's state, the weights in force, whom they are for, and the step."""

    inner: PyTree
    weights: Array
    present: Array
    step: Array


def every(inner: Balancer, steps: Count = 10) -> Balancer:
    """Applies the method every `steps` steps and keeps its weights in between (sooner if a task
    appears that they were not made for). Saves the solver, not the gradients.

    Args:
        inner: a balancer that returns weights.
        steps: the interval.
    """
    rule = inner.rule
    if rule.needs == "jacobian":
        raise ConfigError("every: the method must return weights")

    def init(rows: Rows, num_tasks: int) -> EveryState:
        return EveryState(
            rule.init(rows, num_tasks),
            jnp.zeros((num_tasks,), rule_dtype(rows)),
            jnp.zeros((num_tasks,), bool),
            jnp.zeros((), jnp.int32),
        )

    def weigh(state: EveryState, evidence: Evidence) -> tuple[Array, EveryState]:
        def apply() -> tuple[Array, PyTree, Array]:
            weights, new = rule.weigh(state.inner, evidence)
            return weights.astype(state.weights.dtype), new, evidence.present

        def keep() -> tuple[Array, PyTree, Array]:
            return state.weights, state.inner, state.present

        unknown = (evidence.present & ~state.present).any()
        due = (state.step % steps == 0) | unknown
        weights, new, present = jax.lax.cond(due, apply, keep)
        return weights, EveryState(new, weights, present, state.step + 1)

    return wrap(inner, init, weigh)


class WarmupState(NamedTuple):
    """The wrapped rule's state and the step."""

    inner: PyTree
    step: Array


def warmed_up(inner: Balancer, steps: Natural = 100) -> Balancer:
    """Equal weights for the first `steps` steps, during which the method's state stands still.

    Args:
        inner: any balancer.
        steps: how long.
    """
    rule = inner.rule

    def init(rows: Rows, num_tasks: int) -> WarmupState:
        return WarmupState(rule.init(rows, num_tasks), jnp.zeros((), jnp.int32))

    def weigh(state: WarmupState, evidence: Evidence) -> tuple[Any, WarmupState]:
        dtype = evidence.losses.dtype
        even = solvers.uniform(evidence.present, dtype)

        def apply() -> tuple[Any, PyTree]:
            result, new = rule.weigh(state.inner, evidence)
            if isinstance(result, Mapping | WeightedGradient):
                return weighted_gradient(result, evidence), new
            return result.astype(dtype), new

        def wait() -> tuple[Any, PyTree]:
            returns_gradient = isinstance(jax.eval_shape(apply)[0], WeightedGradient)
            if returns_gradient:
                return WeightedGradient(combine(even, evidence.grads), even), state.inner
            return even, state.inner

        result, new = jax.lax.cond(state.step < steps, wait, apply)
        return result, WarmupState(new, state.step + 1)

    return wrap(inner, init, weigh)


class GroupedState(NamedTuple):
    """One state of the wrapped rule for each group of parameters."""

    inner: dict[str, PyTree]


def grouped(inner: Balancer, by: str | Mapping[str, str] = "layer") -> Balancer:
    """Balances groups of parameters separately, each with its own Gramian and state.

    The weights reported are the mean over the groups.

    Args:
        inner: any balancer.
        by: `"layer"` (all leaves of one module), `"matrix"` (each leaf), or
            `{group: regex over parameter paths}`, the first match decides.
    """
    rule, num_tasks = inner.rule, inner.num_tasks
    if isinstance(by, str):
        choose(by, ("layer", "matrix"), "grouped.by")

    def group_of(path: str) -> str:
        if by == "matrix":
            return path
        if by == "layer":
            return path.rpartition("/")[0] or path
        for name, pattern in by.items():
            if re.search(pattern, path):
                return name
        raise ConfigError(f"grouped.by: no group matches {path!r}; groups: {', '.join(by)}")

    def split(rows: Rows) -> dict[str, Rows]:
        groups: dict[str, Rows] = {}
        for path in sorted(rows):
            groups.setdefault(group_of(path), {})[path] = rows[path]
        return groups

    def init(rows: Rows, num_tasks: int) -> GroupedState:
        groups = split(rows)
        unused = [] if isinstance(by, str) else sorted(set(by) - set(groups))
        if unused:
            raise ConfigError(f"grouped.by: {', '.join(unused)} matches no parameter")
        return GroupedState({name: rule.init(part, num_tasks) for name, part in groups.items()})

    def weigh(state: GroupedState, evidence: Evidence) -> tuple[WeightedGradient, GroupedState]:
        if rule.second_sample:
            raise ConfigError("grouped: not for methods that need a second sample")
        gradient, weights, states = {}, [], dict(state.inner)
        for name, rows in split(evidence.grads).items():
            geometry, _ = measure(rows, evidence.present)
            dtype = evidence.losses.dtype
            geometry = jax.tree.map(lambda x, dtype=dtype: x.astype(dtype), geometry)
            part = evidence._replace(grads=rows, geometry=geometry)
            result, states[name] = rule.weigh(state.inner[name], part)
            combined = weighted_gradient(result, part)
            gradient |= combined.gradient
            weights.append(combined.weights)
        return WeightedGradient(gradient, sum(weights) / len(weights)), GroupedState(states)

    def observe(state: GroupedState, values: Array) -> GroupedState:
        return GroupedState({k: rule.observe(v, values) for k, v in state.inner.items()})

    seen = None if rule.observe is None else observe
    wrapped = rule._replace(needs="jacobian", init=init, weigh=weigh, observe=seen)
    return Balancer(wrapped, num_tasks)


def with_auxiliary_losses(inner: Balancer, auxiliaries: Natural) -> Balancer:
    """Balances the first K losses with `inner`; the auxiliary losses after them, such as
    regularisers, have weight 1 and are never balanced.

    gradient = inner(g_1, .., g_K) + g_{K+1} + .. + g_{K+auxiliaries}

    Args:
        inner: the balancer of the K tasks. Its state is that of the result.
        auxiliaries: how many auxiliary losses follow.
    """
    check(auxiliaries, Natural, "with_auxiliary_losses.auxiliaries")
    if not auxiliaries:
        return inner
    rule, count = inner.rule, inner.num_tasks

    def init(rows: Rows, num_tasks: int) -> PyTree:
        return rule.init(jax.tree.map(lambda x: x[:count], rows), num_tasks - auxiliaries)

    def weigh(state: PyTree, evidence: Evidence) -> tuple[Any, PyTree]:
        first = Evidence(
            losses=evidence.losses[:count],
            present=evidence.present[:count],
            geometry=_first(evidence.geometry, count),
            grads=jax.tree.map(lambda x: x[:count], evidence.grads),
            other=_square(evidence.other, count),
        )
        result, state = rule.weigh(state, first)
        rest = evidence.present[count:]
        if isinstance(result, WeightedGradient | dict):
            combined = weighted_gradient(result, first)
            later = jax.tree.map(lambda x: x[count:], evidence.grads)
            added = combine(rest.astype(combined.weights.dtype), later)
            gradient = {path: combined.gradient[path] + added[path] for path in combined.gradient}
            return WeightedGradient(gradient, _with_ones(combined.weights, rest)), state
        return _with_ones(jnp.where(first.present, result, 0), rest), state

    def observe(state: PyTree, values: Array) -> PyTree:
        return rule.observe(state, values[:count])

    wrapped = rule._replace(
        init=init, weigh=weigh, observe=None if rule.observe is None else observe
    )
    return Balancer(wrapped, count + auxiliaries)


def _first(geometry: Geometry | None, count: int) -> Geometry | None:
    if geometry is None:
        return None
    return Geometry(geometry.norms[:count], _square(geometry.cosines, count))


def _square(table: Array | None, count: int) -> Array | None:
    return None if table is None else table[:count, :count]


def _with_ones(weights: Array, present: Array) -> Array:
    return jnp.concatenate([weights, present.astype(weights.dtype)])


WRAPPERS: dict[str, Callable[..., Balancer]] = {
    rule.__name__: checked_method(rule, f"balancing.{rule.__name__}")
    for rule in (normalised, smoothed, grouped, every, warmed_up)
}
