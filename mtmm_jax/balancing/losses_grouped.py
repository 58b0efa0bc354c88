"""Losses tier: GO4Align and LDC-MTL, whose weights compare the tasks' losses with each other."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from mtmm_jax.balancing import solvers
from mtmm_jax.balancing.base import Array, Balancer, Evidence, Rows, Rule, as_number, rule_dtype
from mtmm_jax.balancing.losses import Learned, learned_init, learned_step
from mtmm_jax.ranges import Count, NonNegative, Positive, Real
from mtmm_jax.registry import ConfigError


def go4align(num_tasks: int, groups: Count = 1, step: Positive = 1e-4) -> Balancer:
    """GO4Align: tasks of like progress share a weight: `p ~ p exp(-step L)`,
    `r_k = p_k sum_j L_j / L_k`; the weight is the centre of r_k's group.

    Groups are those of the least sum of squares, found exactly; the published code searches them by
    k-means from random starts. Its command's default is one group: the mean of r for all tasks.

    Paper: Shen et al., NeurIPS 2024 (arXiv 2404.06486).
    Cost: one backward pass.
    Use it: many tasks, some of which learn alike. Not: losses that reach zero or below.

    Args:
        num_tasks: K.
        groups: how many, at most K.
        step: eta, how fast p leaves tasks of large loss.
    """
    if not isinstance(groups, int):
        raise ConfigError("go4align.groups: an array; pass static_args=('num_tasks', 'groups')")
    if groups > num_tasks:
        raise ConfigError(f"go4align.groups: {groups} of {num_tasks} tasks")

    def init(rows: Rows, num_tasks: int) -> Array:
        return jnp.full((num_tasks,), 1 / num_tasks, rule_dtype(rows))

    def weigh(state: Array, evidence: Evidence) -> tuple[Array, Array]:
        present, dtype = evidence.present, state.dtype
        losses = jnp.where(present, evidence.losses.astype(dtype), 0)
        kept = jnp.where(present, state, 0)
        # Logits, so that no large loss underflows all of them.
        logits = jnp.log(jnp.maximum(kept, jnp.finfo(dtype).tiny)) - as_number(step, dtype) * losses
        p = solvers.masked_softmax(logits, present)
        largest = float(jnp.finfo(dtype).max) ** 0.5
        ratio = jnp.where(losses > 0, losses.sum() / jnp.where(losses > 0, losses, 1), largest)
        raw = jnp.where(present, p * jnp.clip(ratio, 0, largest), 0)
        new = jnp.where(present, p * kept.sum(), state)
        return cluster_means(raw, present, groups), new

    return Balancer(Rule("losses", init, weigh), num_tasks)


def cluster_means(values: Array, mask: Array, groups: int) -> Array:
    """Each value's mean over its group, the groups being those of the least sum of squares.

    In one dimension they are intervals of the sorted values: dynamic programming over their ends.
    """
    size, dtype = len(values), values.dtype
    order = jnp.argsort(jnp.where(mask, values, jnp.inf))
    weight = mask[order].astype(dtype)
    largest = jnp.max(jnp.where(mask, jnp.abs(values), 0))
    unit = jnp.where(largest > 0, largest, 1)
    ordered = jnp.where(mask, values / unit, 0)[order]
    first, last = jnp.arange(size)[:, None], jnp.arange(size)[None, :]
    inside = (jnp.arange(size) >= first[..., None]) & (jnp.arange(size) <= last[..., None])
    inside = jnp.where(inside, weight, 0)  # [first, last, K]
    count = inside.sum(-1)
    mean = (inside @ ordered) / jnp.maximum(count, 1)
    spread = jnp.sum(inside * (ordered - mean[..., None]) ** 2, axis=-1)
    cost = jnp.where(first <= last, spread, jnp.inf)
    best, starts = cost[0], [jnp.zeros((size,), jnp.int32)]
    for _ in range(1, groups):
        # The last group begins at i; the groups before it end at i - 1.
        before = jnp.concatenate([jnp.zeros((1,), dtype), best[:-1]])
        total = before[:, None] + cost
        starts.append(jnp.argmin(total, axis=0).astype(jnp.int32))
        best = jnp.min(total, axis=0)
    places = jnp.arange(size, dtype=jnp.int32)
    means, end = jnp.zeros((size,), dtype), jnp.asarray(size - 1, jnp.int32)
    for begins in reversed(starts):
        start = begins[jnp.maximum(end, 0)]
        member = (places >= start) & (places <= end)
        means = jnp.where(member, mean[start, jnp.maximum(end, 0)], means)
        end = start - 1
    back = jnp.zeros_like(means).at[order].set(means * unit)
    return jnp.where(mask, back, 0)


class LdcState(NamedTuple):
    """The logits under their optimiser, and each task's first loss."""

    logits: Learned
    first: Array
    seen: Array


def ldc_mtl(
    num_tasks: int,
    penalty: NonNegative = 0.01,
    learning_rate: Positive = 1e-3,
    normalise: bool = False,
    init: Real = 1.0,
) -> Balancer:
    """LDC-MTL: `sum_k s_k l_k / sum s + penalty sum_k |s_k l_k - s_{k+1} l_{k+1}|`, over adjacent
    pairs, `s = sigmoid(a)`; a descends along the same function under Adam, `sum s` held constant.

    l is the loss, or with `normalise` the loss times `min_j L_j0 / L_k0` of the first step. This is
    its code for CelebA, where a is free; for dense prediction there a is a network's output.

    Paper: Xiao, Dong & Ji, 2025 (arXiv 2502.08585).
    Cost: one backward pass.
    Use it: many tasks whose losses should stay alike, no budget for task gradients. Not: when the
    order of tasks means nothing and matters: only neighbours are compared.

    Args:
        num_tasks: K.
        penalty: lambda; .01 for CelebA, .05 NYUv2 and QM9, .1 Cityscapes.
        learning_rate: of Adam on a.
        normalise: by the first losses.
        init: the first a.
    """
    inner = optax.adam(learning_rate)

    def begin(rows: Rows, num_tasks: int) -> LdcState:
        start = jnp.broadcast_to(jnp.asarray(init, rule_dtype(rows)), (num_tasks,))
        ones = jnp.ones_like(start)
        return LdcState(learned_init(inner, start), ones, jnp.zeros((num_tasks,), bool))

    def weigh(state: LdcState, evidence: Evidence) -> tuple[Array, LdcState]:
        present, dtype = evidence.present, state.first.dtype
        losses = jnp.where(present, evidence.losses.astype(dtype), 0)
        first = jnp.where(present & ~state.seen, losses, state.first)
        unit = jnp.ones_like(losses)
        if normalise:
            least = jnp.min(jnp.where(present, first, jnp.inf))
            unit = jnp.where(present & (first > 0), least / jnp.where(first > 0, first, 1), 1)
        order = jnp.argsort(~present, stable=True)  # present tasks first, in their order
        pairs = present[order][1:]
        factor = as_number(penalty, dtype)

        def total(losses: Array, logits: Array) -> Array:
            s = jax.nn.sigmoid(logits)
            weighted = jnp.where(present, s * unit * losses, 0)
            whole = jax.lax.stop_gradient(jnp.sum(jnp.where(present, s, 0)))
            ordered = weighted[order]
            gaps = jnp.where(pairs, jnp.abs(ordered[:-1] - ordered[1:]), 0)
            return weighted.sum() / jnp.where(whole > 0, whole, 1) + factor * gaps.sum()

        weights, slope = jax.grad(total, (0, 1))(losses, state.logits.values)
        bound = float(jnp.finfo(dtype).max) ** 0.4  # Adam squares it
        logits = learned_step(inner, state.logits, jnp.clip(slope, -bound, bound), present)
        return weights, LdcState(logits, first, state.seen | present)

    return Balancer(Rule("losses", begin, weigh), num_tasks)
