"""Losses tier: weights that follow the course of training: rates, noise, metrics, validation.

Costs of all of them: one weighted backward pass, whatever K is; and O(K) arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mtmm_jax.balancing import solvers
from mtmm_jax.balancing.base import (
    Array,
    Balancer,
    Evidence,
    RandomState,
    Rows,
    Rule,
    random_init,
    random_next,
    rule_dtype,
    task_array,
    task_vector,
)
from mtmm_jax.balancing.losses import Learned, learned_init, learned_step
from mtmm_jax.ranges import Decay, Natural, NonNegative, Positive, Real
from mtmm_jax.registry import ConfigError


def rlw(num_tasks: int, seed: Natural = 0) -> Balancer:
    """Random loss weighting: `w = softmax(N(0, 1))`, drawn anew at each step.

    Paper: Lin et al., TMLR 2022.
    Cost: one backward pass.
    Use it: a baseline that any learned weighting should beat. Not: where steps are few.

    Args:
        num_tasks: K.
        seed: of the draws.
    """

    def weigh(state: RandomState, evidence: Evidence) -> tuple[Array, RandomState]:
        key, state = random_next(state)
        draws = jax.random.normal(key, (num_tasks,), evidence.losses.dtype)
        return solvers.masked_softmax(draws, evidence.present), state

    return Balancer(Rule("losses", random_init(seed), weigh, reads_losses=False), num_tasks)


class DwaState(NamedTuple):
    """Running sums of this epoch and the means of the last two; counts are per task."""

    sums: Array
    count: Array
    last: Array
    before: Array
    epochs: Array
    step: Array


def dwa(num_tasks: int, temperature: Positive = 2.0, epoch: Natural = 100) -> Balancer:
    """Dynamic weight averaging: `w = K softmax(r / T)`, `r_k = mean L_k(e-1) / mean L_k(e-2)`;
    ones for the first two epochs.

    An epoch ends after `epoch` steps, or, with `epoch=0`, when `observe` brings the mean losses.

    Paper: Liu, Johns & Davison, CVPR 2019.
    Cost: one backward pass.
    Use it: tasks that learn at different rates. Not: noisy losses with short epochs.

    Args:
        num_tasks: K.
        temperature: T; large is equal weights.
        epoch: steps in an epoch; 0: epochs end with `observe`.
    """

    by_observation = isinstance(epoch, int) and epoch == 0

    def init(rows: Rows, num_tasks: int) -> DwaState:
        zeros = jnp.zeros((num_tasks,), rule_dtype(rows))
        counts = jnp.zeros((num_tasks,), jnp.int32)
        return DwaState(zeros, counts, zeros, zeros, counts, jnp.zeros((), jnp.int32))

    def roll(state: DwaState, means: Array, measured: Array) -> DwaState:
        zeros = jnp.zeros_like(state.sums)
        return state._replace(
            sums=zeros,
            count=jnp.zeros_like(state.count),
            last=jnp.where(measured, means.astype(zeros.dtype), state.last),
            before=jnp.where(measured, state.last, state.before),
            epochs=jnp.where(measured, state.epochs + 1, state.epochs),
        )

    def weigh(state: DwaState, evidence: Evidence) -> tuple[Array, DwaState]:
        present = evidence.present
        known = (state.epochs >= 2) & (state.before > 0)
        ratio = jnp.where(known, state.last / jnp.where(known, state.before, 1), 1)
        count = present.sum().astype(ratio.dtype)
        weights = count * solvers.masked_softmax(ratio / temperature, present)
        state = state._replace(
            sums=jnp.where(present, state.sums + evidence.losses.astype(ratio.dtype), state.sums),
            count=state.count + present.astype(jnp.int32),
            step=state.step + 1,
        )
        if by_observation:
            return weights, state
        means = state.sums / jnp.maximum(state.count, 1).astype(ratio.dtype)
        rolled = roll(state, means, state.count > 0)
        ends = state.step % epoch == 0
        return weights, jax.tree.map(lambda a, b: jnp.where(ends, a, b), rolled, state)

    def observe(state: DwaState, values: Array) -> DwaState:
        measured = jnp.isfinite(values)
        return roll(state, jnp.where(measured, values, 0), measured)

    waits = (observe, False, "losses") if by_observation else ()
    return Balancer(Rule("losses", init, weigh, *waits), num_tasks)


class FamoState(NamedTuple):
    """The logits under their optimiser, and the losses that the last step's weights acted on."""

    logits: Learned
    before: Array
    pending: Array


def famo(
    num_tasks: int,
    learning_rate: Positive = 0.025,
    weight_decay: NonNegative = 1e-3,
    minimum: Real | Sequence[Real] = 0.0,
    after: Literal["next", "same"] = "next",
) -> Balancer:
    """FAMO: equal rates of decrease of the log losses. With `z = softmax(xi)`, `D = L - b`,
    `w_k = (z_k / D_k) / sum_j (z_j / D_j)`; after the step xi follows
    `(dz/dxi)^T (log D_before - log D_after)` under Adam with L2 decay.

    `after="next"` takes the next step's losses for `D_after`: no second forward, but they are of
    another batch, so the signal carries the batches' noise. `after="same"` is the published form:
    call `observe` with the losses of the same batch after the step, one more forward.

    Paper: Liu et al., NeurIPS 2023.
    Cost: one backward pass (and one forward with `after="same"`).
    Use it: many tasks, no budget for task gradients. Not: losses that reach their minimum b.

    Args:
        num_tasks: K.
        learning_rate: of Adam on xi.
        weight_decay: L2, added to xi's gradient.
        minimum: b, a lower bound of each loss.
        after: `"next"` or `"same"`.
    """
    floor = task_vector(minimum, num_tasks, "famo.minimum")
    inner = optax.chain(optax.add_decayed_weights(weight_decay), optax.adam(learning_rate))

    def init(rows: Rows, num_tasks: int) -> FamoState:
        zeros = jnp.zeros((num_tasks,), rule_dtype(rows))
        return FamoState(learned_init(inner, zeros), zeros, jnp.zeros((num_tasks,), bool))

    def distance(losses: Array, dtype: jnp.dtype) -> Array:
        return jnp.maximum(losses.astype(dtype) - task_array(floor, dtype), 0) + 1e-8

    def learn(state: FamoState, losses: Array, measured: Array) -> FamoState:
        """One step of xi for tasks whose loss is known both before and after."""
        both = state.pending & measured
        now = distance(jnp.where(measured, losses, 0), state.before.dtype)
        fall = jnp.where(both, jnp.log(jnp.where(both, state.before, 1)) - jnp.log(now), 0)
        z = solvers.masked_softmax(state.logits.values, both)
        gradient = z * (fall - z @ fall)
        logits = learned_step(inner, state.logits, gradient, both)
        return state._replace(logits=logits, pending=state.pending & ~measured)

    def weigh(state: FamoState, evidence: Evidence) -> tuple[Array, FamoState]:
        present = evidence.present
        if after == "next":
            state = learn(state, evidence.losses, present)
        now = distance(evidence.losses, state.before.dtype)
        ratio = jnp.where(present, solvers.masked_softmax(state.logits.values, present) / now, 0)
        sums = ratio.sum()
        weights = ratio / jnp.where(sums > 0, sums, 1)
        before = jnp.where(present, now, state.before)
        return weights, state._replace(before=before, pending=state.pending | present)

    def observe(state: FamoState, values: Array) -> FamoState:
        return learn(state, values, jnp.isfinite(values))

    waits = (observe, False, "losses") if after == "same" else ()
    return Balancer(Rule("losses", init, weigh, *waits), num_tasks)


def performance(
    num_tasks: int,
    reference: Real | Sequence[Real] = 1.0,
    favour: Literal["better", "worse", "focal"] = "better",
    higher_is_better: bool | Sequence[bool] = True,
    gamma: NonNegative = 1.0,
    decay: Decay = 0.0,
) -> Balancer:
    """Weights from validation metrics relative to their references, `r_k = metric / reference`
    (inverted where lower is better): `w_k = n r_k / sum r`, n the number of present tasks.

    `favour="better"`: the better performing task gains weight. `"worse"`: `1 / r_k` instead.
    `"focal"`: dynamic task prioritisation, `-(1 - r)^gamma log r`, for r in (0, 1).
    Metrics arrive through `observe`; NaN ones leave that task as it was. Ones until then.

    Paper: Guo et al., ECCV 2018 (DTP) for the focal form.
    Cost: one backward pass; a validation run now and then.
    Use it: when the metric, not the loss, is what counts. Not: with noisy or rare validation.

    Args:
        num_tasks: K.
        reference: the metric's value at r = 1, one number or K.
        favour: `"better"`, `"worse"` or `"focal"`.
        higher_is_better: one bool or K.
        gamma: focusing exponent of `"focal"`.
        decay: r follows the metrics as an average with this decay; 0 takes the last one.
    """
    references = task_vector(reference, num_tasks, "performance.reference")
    flags = (higher_is_better,) * num_tasks if isinstance(higher_is_better, bool) else None
    higher = tuple(higher_is_better) if flags is None else flags
    if len(higher) != num_tasks:
        raise ConfigError(f"performance.higher_is_better: {len(higher)} for {num_tasks} tasks")

    def init(rows: Rows, num_tasks: int) -> tuple[Array, Array]:
        return jnp.ones((num_tasks,), rule_dtype(rows)), jnp.zeros((num_tasks,), bool)

    def weigh(state: tuple[Array, Array], evidence: Evidence) -> tuple[Array, tuple[Array, Array]]:
        ratio, seen = state
        if favour == "better":
            raw = ratio
        elif favour == "worse":
            raw = 1 / ratio
        else:
            inside = jnp.clip(ratio, 1e-6, 1 - 1e-6)
            raw = jnp.where(seen, -((1 - inside) ** gamma) * jnp.log(inside), 1)
        raw = jnp.where(evidence.present, raw, 0)
        sums = raw.sum()
        count = evidence.present.sum().astype(raw.dtype)
        return count * raw / jnp.where(sums > 0, sums, 1), state

    def observe(state: tuple[Array, Array], values: Array) -> tuple[Array, Array]:
        ratio, seen = state
        measured = jnp.isfinite(values)
        metric = jnp.maximum(jnp.where(measured, values, 1).astype(ratio.dtype), 1e-6)
        scale = task_array(references, ratio.dtype)
        new = jnp.where(jnp.asarray(higher), metric / scale, scale / metric)
        blended = jnp.where(seen, decay * ratio + (1 - decay) * new, new)
        chosen = jnp.where(measured, blended, ratio)
        return chosen, seen | measured

    return Balancer(Rule("losses", init, weigh, observe, observes="metrics"), num_tasks)


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


def blending(num_tasks: int, members: Sequence[Natural], least: Decay = 0.05) -> Balancer:
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
    if not least * len(members) < 1:
        raise ConfigError(
            f"blending.least: {least!r} is not below 1 / {len(members)}, "
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
