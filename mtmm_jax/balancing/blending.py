"""Gradient blending: losses weighted by how well what they learn generalises."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp

from mtmm_jax.balancing.core import Balancer, Evidence, Rule
from mtmm_jax.balancing.losses_only import rule_dtype
from mtmm_jax.balancing.rows import Array, Rows
from mtmm_jax.registry import ConfigError


class BlendingState(NamedTuple):
    """`[K]` each: the weights, the training losses since the last validation, and the last point.

    Attributes:
        weights: of all losses.
        sums, count: of the training losses since the last point.
        train, validation: the losses at the last point.
        known: whether there was one.
    """

    weights: Array
    sums: Array
    count: Array
    train: Array
    validation: Array
    known: Array


def blending(num_tasks: int, members: Sequence[int], least: float = 0.05) -> Balancer:
    """Gradient blending: `w_k ~ G_k / O_k^2` over some of the losses, of which they sum to 1.

    Between two validations G_k is the fall of the validation loss and O_k the growth of its gap to
    the training loss, `O_k = D(V_k - T_k)`: a loss whose gains do not carry over, as that of a
    modality that overfits, gives way. T_k is the mean of the training losses since the validation
    before. Equal weights until the second validation. A validation loss that rose has G = 0;
    where all of them rose the weights stay, as does the weight of a member that was not measured.
    Losses that are not members weigh 1.

    Paper: Wang, Tran & Feiszli, CVPR 2020: the online form, on the run's own network rather than on
    networks trained for the purpose. There a weight may be zero; here no member falls below
    `least`, since a head that does not learn would never show a gain again.
    Cost: one backward pass.
    Use it: a task's fused loss and those of its modalities. Not: with few, noisy validations.

    Args:
        num_tasks: K.
        members: which losses are blended, by index.
        least: of a member's weight.
    """
    members = tuple(members)
    if len(set(members)) < 2 or len(set(members)) < len(members):
        raise ConfigError(f"blending.members: {members} are not two or more different losses")
    if not all(0 <= index < num_tasks for index in members):
        raise ConfigError(f"blending.members: {members} are not among {num_tasks} losses")
    number = isinstance(least, int | float) and not isinstance(least, bool)
    if not number or not 0 <= least * len(members) < 1:
        raise ConfigError(
            f"blending.least: {least!r} is not a number from 0 to below 1 / {len(members)}, "
            "one over the number of blended losses"
        )
    blended = tuple(index in members for index in range(num_tasks))

    def init(rows: Rows, num_tasks: int) -> BlendingState:
        zeros = jnp.zeros((num_tasks,), rule_dtype(rows))
        weights = jnp.where(jnp.asarray(blended), 1 / len(members), 1.0).astype(zeros.dtype)
        counts = jnp.zeros((num_tasks,), jnp.int32)
        return BlendingState(weights, zeros, counts, zeros, zeros, jnp.zeros((num_tasks,), bool))

    def weigh(state: BlendingState, evidence: Evidence) -> tuple[Array, BlendingState]:
        losses = jnp.where(evidence.present, evidence.losses, 0).astype(state.sums.dtype)
        count = state.count + evidence.present.astype(jnp.int32)
        return state.weights, state._replace(sums=state.sums + losses, count=count)

    def observe(state: BlendingState, values: Array) -> BlendingState:
        measured = jnp.isfinite(values) & (state.count > 0) & jnp.asarray(blended)
        now = jnp.where(measured, values, 0).astype(state.sums.dtype)
        train = state.sums / jnp.maximum(state.count, 1).astype(state.sums.dtype)
        gain = jnp.maximum(state.validation - now, 0)
        gap = (now - train) - (state.validation - state.train)
        both = measured & state.known
        raw = jnp.where(both, gain / jnp.maximum(gap**2, 1e-8), 0)
        total = raw.sum()
        share = jnp.where(both, state.weights, 0).sum()  # what the others hold stays with them
        floor = jnp.minimum(least, share / jnp.maximum(both.sum(), 1).astype(share.dtype))
        spare = share - floor * both.sum().astype(share.dtype)
        new = floor + spare * raw / jnp.where(total > 0, total, 1)
        return BlendingState(
            weights=jnp.where(both & (total > 0), new, state.weights),
            sums=jnp.where(measured, 0, state.sums),
            count=jnp.where(measured, 0, state.count),
            train=jnp.where(measured, train, state.train),
            validation=jnp.where(measured, now, state.validation),
            known=state.known | measured,
        )

    return Balancer(Rule("losses", init, weigh, observe, observes="losses"), num_tasks)
