"""What a balancing method is: a `Rule` over `Evidence`, and the Optax face that every rule has.

A rule turns what its tier paid for (losses, a Gramian, task gradients) into weights or a gradient.
`Balancer` is that rule as an `optax.GradientTransformationExtraArgs`, to stand first in a chain.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from mtmm_jax.balancing.rows import (
    Array,
    PyTree,
    Rows,
    balancing_dtype,
    combine,
    gramian_of,
    mask_gramian,
    mask_rows,
    not_finite,
    paths_of,
    shared_labels,
)
from mtmm_jax.registry import ConfigError

TIERS = ("losses", "gramian", "jacobian")


class Evidence(NamedTuple):
    """What one step knows about its tasks. What the tier did not pay for is None.

    Rows of absent tasks are zero here, never NaN: a rule only has to look at `present`.

    Attributes:
        losses: `[K]`, global means.
        present: `[K]` bool: the task has labels in this step and is finite.
        gramian: `[K, K]`, inner products of the task gradients.
        grads: `{path: [K, ...]}`, the task gradients of the shared leaves.
        other: a second, independent sample: the cross Gramian `J1 J2^T`, `[K, K]`.
    """

    losses: Array
    present: Array
    gramian: Array | None = None
    grads: Rows | None = None
    other: Array | None = None


class Rule(NamedTuple):
    """A balancing method, written once for every face and engine.

    Attributes:
        needs: its tier, `"losses"`, `"gramian"` or `"jacobian"`.
        init: `(rows, num_tasks) -> state`; `rows` are zeros like the task gradients.
        weigh: `(state, Evidence) -> (verdict, state)`: weights `[K]`, a gradient
            `{path: [...]}`, or `Mixed`, both.
        observe: `(state, values [K]) -> state`; NaN entries are tasks that were not measured.
        second_sample: whether `Evidence.other` is needed.
        observes: what `observe` is to be given: `"metrics"` of a validation, larger is better
            unless the method is told otherwise, or later `"losses"`; empty without it.
    """

    needs: str
    init: Callable[[Rows, int], PyTree]
    weigh: Callable[[PyTree, Evidence], tuple[Any, PyTree]]
    observe: Callable[[PyTree, Array], PyTree] | None = None
    second_sample: bool = False
    observes: str = ""


class BalancerState(NamedTuple):
    """What a balancer carries from step to step: arrays only, of fixed structure and dtype.

    Attributes:
        rule: the rule's own state.
        task_weights: `[K]`, of the last step; the implied weights (all ones) if the rule returns a
            gradient rather than weights.
        absences: `[K]` int32, how often each task was absent or not finite.
        skipped: int32, how often the balanced gradient was not finite.
    """

    rule: PyTree
    task_weights: Array
    absences: Array
    skipped: Array


class Mixed(NamedTuple):
    """A verdict of a rule that mixes the gradients itself, and the weights it may have used."""

    gradient: Rows
    weights: Array


class Outcome(NamedTuple):
    """What a balancer decided: a gradient of the shared leaves and/or the weights behind it."""

    weights: Array
    gradient: Rows | None
    state: PyTree


class Balancer(optax.GradientTransformationExtraArgs):
    """A balancing rule as an Optax transformation.

    `update(grads, state, params=None, *, losses, present=None, other=None)` balances every leaf of
    shape `[K, *p.shape]` and passes every leaf of shape `p.shape` (a head's own gradient) through;
    without `params` all leaves are stacked. `losses` and `present` are `[K]`; `other` is a second
    independent sample of the stacked gradients, for the rules that need one.

    Attributes:
        rule: the `Rule`.
        num_tasks: K.
    """

    rule: Rule
    num_tasks: int

    def __new__(cls, rule: Rule, num_tasks: int) -> Balancer:
        if rule.needs not in TIERS:
            raise ConfigError(f"rule.needs: {rule.needs!r}; choices: {', '.join(TIERS)}")
        if num_tasks < 1:
            raise ConfigError(f"num_tasks: {num_tasks}; a balancer needs at least one task")

        def init(params: PyTree, shared: PyTree | None = None) -> BalancerState:
            return initial_state(rule, num_tasks, params, shared)

        def update(
            grads: PyTree,
            state: BalancerState,
            params: PyTree | None = None,
            *,
            losses: Array,
            present: Array | None = None,
            other: PyTree | None = None,
            **extra_args: Any,
        ) -> tuple[PyTree, BalancerState]:
            del extra_args  # meant for other members of the chain
            return _update(rule, num_tasks, grads, state, params, losses, present, other)

        self = super().__new__(cls, init, update)
        self.rule = rule
        self.num_tasks = num_tasks
        return self

    def observe(self, state: BalancerState, values: Array) -> BalancerState:
        """Feeds later losses or validation metrics `[K]` to rules that learn from them."""
        if self.rule.observe is None:
            return state
        chex.assert_shape(values, (self.num_tasks,))
        return state._replace(rule=self.rule.observe(state.rule, values))


def initial_state(
    rule: Rule, num_tasks: int, params: PyTree, shared: PyTree | None = None
) -> BalancerState:
    """The state before the first step; with `shared`, rules keep buffers of shared leaves only."""
    labels = shared_labels(shared, params)
    leaves = jax.tree.leaves(params)
    rows = {
        path: jnp.zeros((num_tasks, *leaf.shape), leaf.dtype)
        for path, leaf, label in zip(paths_of(params), leaves, labels, strict=True)
        if label
    }
    dtype = balancing_dtype(*(leaf.dtype for leaf in leaves))
    return BalancerState(
        # Own buffers for all leaves: a donated state must not hold the same one twice.
        rule=jax.tree.map(jnp.copy, rule.init(rows, num_tasks)),
        task_weights=jnp.ones((num_tasks,), dtype),
        absences=jnp.zeros((num_tasks,), jnp.int32),
        skipped=jnp.zeros((), jnp.int32),
    )


def decide(rule: Rule, state: PyTree, evidence: Evidence) -> Outcome:
    """Asks the rule; tidies what it says: absent tasks weigh exactly zero."""
    verdict, new_state = rule.weigh(state, evidence)
    if isinstance(verdict, Mapping | Mixed):
        mixed = mixed_gradient(verdict, evidence)
        return Outcome(mixed.weights, mixed.gradient, new_state)
    weights = jnp.where(evidence.present, verdict, 0).astype(evidence.losses.dtype)
    gradient = None if evidence.grads is None else combine(weights, evidence.grads)
    return Outcome(weights, gradient, new_state)


def mixed_gradient(verdict: Any, evidence: Evidence) -> Mixed:
    """Any verdict as a gradient with weights (ones where the rule names none)."""
    dtype = evidence.losses.dtype
    if isinstance(verdict, Mixed):
        weights = jnp.where(evidence.present, verdict.weights, 0).astype(dtype)
        return Mixed(dict(verdict.gradient), weights)
    if isinstance(verdict, Mapping):
        return Mixed(dict(verdict), evidence.present.astype(dtype))
    weights = jnp.where(evidence.present, verdict, 0).astype(dtype)
    return Mixed(combine(weights, evidence.grads), weights)


def advance(
    state: BalancerState, outcome: Outcome, present: Array, skipped: Array
) -> BalancerState:
    """The next state; a rule does not learn from a step whose update is not finite."""
    rule = jax.tree.map(
        lambda new, old: jnp.where(skipped, old, new).astype(old.dtype), outcome.state, state.rule
    )
    return BalancerState(
        rule=rule,
        task_weights=outcome.weights.astype(state.task_weights.dtype),
        absences=state.absences + jnp.where(present, 0, 1).astype(jnp.int32),
        skipped=state.skipped + skipped.astype(jnp.int32),
    )


def current_weights(state: PyTree) -> Array:
    """The task weights of the last step, found by name in any (chained, wrapped) Optax state."""
    found = optax.tree.get_all_with_path(state, "task_weights")
    if not found:
        raise ConfigError("current_weights: no balancer in this optimizer state")
    return found[0][1]


def _stacked(grads: PyTree, params: PyTree | None, num_tasks: int) -> list[bool]:
    """Which leaves carry one row per task."""
    leaves = jax.tree.leaves(grads)
    if params is None:
        shapes = [leaf.shape[1:] for leaf in leaves]
    else:
        shapes = [leaf.shape for leaf in jax.tree.leaves(params)]
    stacked = []
    for path, leaf, shape in zip(paths_of(grads), leaves, shapes, strict=True):
        is_row = leaf.shape == (num_tasks, *shape)
        if not is_row and leaf.shape != shape:
            raise ConfigError(
                f"gradient of {path!r} has shape {leaf.shape}; a balancer of {num_tasks} tasks "
                f"takes {(num_tasks, *shape)} (one row per task) or {shape} (passed through)"
            )
        stacked.append(is_row)
    return stacked


def _rows_of(grads: PyTree, stacked: list[bool]) -> Rows:
    named = zip(paths_of(grads), jax.tree.leaves(grads), stacked, strict=True)
    return {path: leaf for path, leaf, is_row in named if is_row}


def _update(
    rule: Rule,
    num_tasks: int,
    grads: PyTree,
    state: BalancerState,
    params: PyTree | None,
    losses: Array,
    present: Array | None,
    other: PyTree | None,
) -> tuple[PyTree, BalancerState]:
    """The Optax face: all task gradients are at hand, whatever the tier."""
    losses = jnp.asarray(losses)
    chex.assert_shape(losses, (num_tasks,))
    losses = losses.astype(balancing_dtype(losses.dtype))
    stacked = _stacked(grads, params, num_tasks)
    rows = _rows_of(grads, stacked)
    if not rows:
        raise ConfigError(f"no gradient has one row per task ({num_tasks} tasks)")
    present = jnp.ones((num_tasks,), bool) if present is None else jnp.asarray(present, bool)
    if rule.second_sample and other is None:
        raise ConfigError("this rule needs a second independent sample of the gradients: `other`")
    others = _rows_of(other, stacked) if rule.second_sample else None
    evidence = gather(losses, present, rows, others)
    outcome = decide(rule, state.rule, evidence)
    leaves, treedef = jax.tree.flatten(grads)
    named = zip(paths_of(grads), leaves, stacked, strict=True)
    mixed = [outcome.gradient[path] if is_row else leaf for path, leaf, is_row in named]
    skipped = not_finite(mixed)
    return jax.tree.unflatten(treedef, mixed), advance(state, outcome, evidence.present, skipped)


def gather(losses: Array, present: Array, rows: Rows, others: Rows | None = None) -> Evidence:
    """Evidence from task gradients: what is not finite is absent, what is absent is zero."""
    squared = sum(
        jnp.sum(jnp.square(x.astype(balancing_dtype(x.dtype))).reshape(x.shape[0], -1), axis=1)
        for x in rows.values()
    )
    present = present & jnp.isfinite(losses) & jnp.isfinite(squared)
    if others is not None:
        cross = gramian_of(rows, others)
        present = present & jnp.isfinite(jnp.diagonal(cross))
        cross = mask_gramian(present, gramian_of(mask_rows(present, rows), others))
    rows = mask_rows(present, rows)
    dtype = balancing_dtype(losses.dtype, *(x.dtype for x in rows.values()))
    return Evidence(
        losses=jnp.where(present, losses, 0).astype(dtype),
        present=present,
        gramian=gramian_of(rows).astype(dtype),
        grads=rows,
        other=None if others is None else cross.astype(dtype),
    )
