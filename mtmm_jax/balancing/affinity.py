"""Task affinity: how much one task's step helps another, measured; weights and groups from it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mtmm_jax.balancing.base import (
    Array,
    Balancer,
    Evidence,
    PyTree,
    Rows,
    Rule,
    gather,
    paths_of,
    rule_dtype,
    shared_labels,
    task_vector,
)
from mtmm_jax.balancing.cut import EngineOptions, tally
from mtmm_jax.balancing.engines import cheaper_gradients
from mtmm_jax.ranges import Decay, NonNegative, Real
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


class Affinities(NamedTuple):
    """Affinities of the tasks of one batch; NaN where a pair is unknown.

    Attributes:
        lookahead: `[K, K]`, entry (j, k): what a step on task k alone takes off task j's loss, as
            a share of it.
        cosines: `[K, K]`, of the task gradients of the shared parameters.
    """

    lookahead: Array
    cosines: Array


def measured_affinity(
    losses_fn: Any,
    num_tasks: int,
    step: float,
    *,
    shared: PyTree | Callable[[PyTree], PyTree] | None = None,
) -> Callable[..., Affinities]:
    """`fn(params, *args) -> Affinities`: what tasks do for each other on one batch.

        Z[j, k] = 1 - L_j(theta - step g_k, heads) / L_j(theta, heads),    C[j, k] = cos(g_j, g_k)

    with g_k the gradient of task k with respect to the shared parameters theta; everything else
    stays where it is, and all losses are those of the same batch. A pair with an absent task, or
    one whose loss or gradient is not finite, is NaN; so is, of Z, a row whose loss is not positive,
    as a share of it means nothing.

    Paper: Fifty et al., NeurIPS 2021 (Z); Du et al. 2018 (C).
    Cost: K pullbacks, K x P numbers, and K forward passes; two programs, whatever K is.
    Use it: before training, to set weights or to group tasks. Not: in every step; the rule
    `affinity` follows the cosines for the price of the Gramian.

    Args:
        losses_fn: as in `value_and_grad`: a `Split`, or `(params, *args) -> (sums, counts, aux)`.
        num_tasks: K, all losses of `losses_fn`.
        step: of plain gradient descent.
        shared: which parameters are shared, as in `value_and_grad`; all by default.
    """

    def options_of(params: PyTree) -> EngineOptions:
        labels = shared_labels(shared, params)
        return EngineOptions(num_tasks, None, labels, "own", 1)

    @jax.jit
    def before(params: PyTree, *args: Any) -> Evidence:
        options = options_of(params)
        task_gradients = cheaper_gradients(losses_fn, options, params, args)
        found = task_gradients(losses_fn, options, params, args)
        return gather(found.tallied.losses, found.tallied.present, found.rows)

    @jax.jit
    def after(params: PyTree, rows: Rows, task: Array, *args: Any) -> Array:
        leaves, treedef = jax.tree.flatten(params)
        named = zip(paths_of(params), leaves, strict=True)
        moved = [
            leaf - (step * rows[path][task]).astype(leaf.dtype) if path in rows else leaf
            for path, leaf in named
        ]
        sums, counts, _ = losses_fn(jax.tree.unflatten(treedef, moved), *args)
        return tally(sums, counts, options_of(params)).losses

    def fn(params: PyTree, *args: Any) -> Affinities:
        now = before(params, *args)
        tasks = [jnp.asarray(k, jnp.int32) for k in range(num_tasks)]
        later = jnp.stack([after(params, now.grads, k, *args) for k in tasks], axis=1)
        pairs = now.present[:, None] & now.present[None, :]
        share = lookahead_affinity(now.losses, later)
        known = pairs & (now.losses > 0)[:, None] & jnp.isfinite(share)
        return Affinities(
            jnp.where(known, share, jnp.nan), jnp.where(pairs, now.geometry.cosines, jnp.nan)
        )

    return fn


def relative(affinity: Array) -> Array:
    """`A[j, k] / max_k |A[j, k]|`: what helps a task, by what moves it most; NaN becomes 0.

    Losses of any scale then count alike, and the size of the step drops out.
    """
    known = jnp.where(jnp.isfinite(affinity), affinity, 0)
    most = jnp.abs(known).max(1, keepdims=True)
    return known / jnp.where(most > 0, most, 1)


def static_weights(affinity: Array, temperature: float = 1.0) -> Array:
    """`w_k = K s_k^(1/T) / sum_i s_i^(1/T)` with s = `affinity_weights` of equal importance; that
    is K softmax(log(s) / T). Ones where all s are 0.

    Args:
        affinity: `[K, K]`, entry (j, k): what task k's step does for task j; see `relative`.
        temperature: T; large makes the weights equal, small favours the most helpful task.
    """
    share = affinity_weights(jnp.ones_like(affinity[0]), affinity)
    sharp = jnp.where(share > 0, (share / share.max()) ** (1 / temperature), 0)
    total = sharp.sum()
    return jnp.where(total > 0, len(share) * sharp / jnp.where(total > 0, total, 1), 1)


Groups = list[list[int]]
Table = Sequence[Sequence[float]]
EXHAUSTIVE = 8  # tasks whose partitions, 4140 at most, are all compared


def group_score(affinity: Table, groups: Groups) -> float:
    """`mean_j mean_k A[j, k]` over the other k of j's group; 0 for a task that stands alone."""
    return math.fsum(_received(affinity, group) for group in groups) / len(affinity)


def _received(affinity: Table, group: list[int]) -> float:
    """The affinity that a group's tasks receive from each other: the sum over j of the mean over
    k."""
    if len(group) < 2:
        return 0.0
    return math.fsum(affinity[j][k] for j in group for k in group if j != k) / (len(group) - 1)


def best_groups(affinity: Table, most: int) -> Groups:
    """The partition of the tasks into at most `most` groups that has the highest `group_score`.

    Up to `EXHAUSTIVE` tasks all partitions are compared; of equals the first counts, in an order
    that begins with all tasks together. With more, starting from single tasks, those two groups
    are merged whose tasks gain most by it, until they would lose and there are few enough.
    """
    if len(affinity) > EXHAUSTIVE:
        return _agglomerated(affinity, most)
    best, highest = [], -math.inf
    for groups in _partitions(len(affinity), most):
        if (score := group_score(affinity, groups)) > highest + 1e-9:
            best, highest = groups, score
    return best


def _partitions(count: int, most: int, groups: Groups | None = None) -> Iterator[Groups]:
    """Each partition of `range(count)` into at most `most` groups once."""
    groups = groups or []
    item = sum(map(len, groups))
    if item == count:
        yield groups
        return
    for i in range(len(groups)):
        yield from _partitions(count, most, [*groups[:i], [*groups[i], item], *groups[i + 1 :]])
    if len(groups) < most:
        yield from _partitions(count, most, [*groups, [item]])


def _agglomerated(affinity: Table, most: int) -> Groups:
    groups = [[i] for i in range(len(affinity))]

    def gain(pair: tuple[list[int], list[int]]) -> float:
        return _received(affinity, pair[0] + pair[1]) - sum(_received(affinity, g) for g in pair)

    while len(groups) > 1:
        pair = max(itertools.combinations(groups, 2), key=gain)
        if len(groups) <= most and gain(pair) < -1e-9:
            break
        groups = sorted([*(g for g in groups if g not in pair), sorted(pair[0] + pair[1])])
    return groups


class AffinityState(NamedTuple):
    """The averaged affinity of each pair and how often the pair was seen together."""

    mean: Array
    count: Array


def affinity(
    num_tasks: int,
    importance: NonNegative | Sequence[NonNegative] = 1.0,
    decay: Decay = 0.9,
    matrix: Sequence[Sequence[Real]] | None = None,
) -> Balancer:
    """Weights from importance and task affinity: `w = affinity_weights(importance, A)`, A the
    running mean of the gradients' cosines, or a matrix measured beforehand.

    Paper: Fifty et al., NeurIPS 2021 (affinity); Du et al. 2018 (cosines of gradients).
    Cost: the Gramian, O(K^2).
    Use it: auxiliary tasks of unknown use next to a few important ones. Not: when all tasks matter
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
        now = evidence.geometry.cosines.astype(dtype)
        mean = jnp.where(pairs, keep * state.mean + (1 - keep) * now, state.mean)
        state = AffinityState(mean, state.count + pairs.astype(jnp.int32))
        table = mean if fixed is None else jnp.asarray(fixed, dtype)
        table = jnp.where(pairs, table, 0)
        counted = jnp.where(present, jnp.asarray(matters, dtype), 0)
        return affinity_weights(counted, table), state

    return Balancer(Rule("gramian", init, weigh, reads_losses=False), num_tasks)
