"""Losses-only methods whose weights follow the course of training: rates, noise, metrics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from mtmm_jax.balancing.core import Balancer, Evidence, Rule
from mtmm_jax.balancing.losses_only import (
    Learned,
    learned_init,
    learned_step,
    rule_dtype,
    task_vector,
)
from mtmm_jax.balancing.randomness import RandomState, random_init, random_next
from mtmm_jax.balancing.rows import Array, Rows
from mtmm_jax.registry import ConfigError, choose


def masked_softmax(values: Array, present: Array) -> Array:
    """Softmax over the present tasks, 0 for the others."""
    return jax.nn.softmax(jnp.where(present, values, 0), where=present)


def rlw(num_tasks: int, seed: int = 0) -> Balancer:
    """Random loss weighting: `w = softmax(N(0, 1))`, drawn anew at each step.

    Paper: Lin et al., TMLR 2022.
    Cost: one backward pass.
    Use it: a baseline that any learned weighting should beat. Not: where steps are few.

    Args:
        num_tasks: K.
        seed: of the draws.
    """

    def init(rows: Rows, num_tasks: int) -> RandomState:
        del rows, num_tasks
        return random_init(seed)

    def weigh(state: RandomState, evidence: Evidence) -> tuple[Array, RandomState]:
        key, state = random_next(state)
        draws = jax.random.normal(key, (num_tasks,), evidence.losses.dtype)
        return masked_softmax(draws, evidence.present), state

    return Balancer(Rule("losses", init, weigh), num_tasks)


def imtl_l(num_tasks: int, learning_rate: float = 1e-2, init: float = 0.0) -> Balancer:
    """IMTL-L: minimise `sum_k e^{s_k} L_k - s_k`, `s_k` learned: scaled losses of equal size.

    `s` lives in this rule's state under its own Adam; an absent task's `s_k` stands still.

    Paper: Liu et al., ICLR 2021.
    Cost: one backward pass.
    Use it: losses of different and drifting scales. Not: losses that reach zero.

    Args:
        num_tasks: K.
        learning_rate: of the inner Adam.
        init: the first `s_k`.
    """
    inner = optax.adam(learning_rate)

    def first(rows: Rows, num_tasks: int) -> Learned:
        return learned_init(inner, jnp.full((num_tasks,), init, rule_dtype(rows)))

    def weigh(state: Learned, evidence: Evidence) -> tuple[Array, Learned]:
        weights = jnp.exp(state.values)
        gradient = weights * evidence.losses.astype(weights.dtype) - 1
        return weights, learned_step(inner, state, gradient, evidence.present)

    return Balancer(Rule("losses", first, weigh), num_tasks)


class DwaState(NamedTuple):
    """Running sums of this epoch and the means of the last two; counts are per task."""

    sums: Array
    count: Array
    last: Array
    before: Array
    epochs: Array
    step: Array


def dwa(num_tasks: int, temperature: float = 2.0, epoch: int = 100) -> Balancer:
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
    if temperature <= 0 or epoch < 0:
        raise ConfigError(f"dwa: temperature={temperature} must be > 0 and epoch={epoch} >= 0")

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
        weights = count * masked_softmax(ratio / temperature, present)
        state = state._replace(
            sums=jnp.where(present, state.sums + evidence.losses.astype(ratio.dtype), state.sums),
            count=state.count + present.astype(jnp.int32),
            step=state.step + 1,
        )
        if epoch == 0:
            return weights, state
        means = state.sums / jnp.maximum(state.count, 1).astype(ratio.dtype)
        rolled = roll(state, means, state.count > 0)
        ends = state.step % epoch == 0
        return weights, jax.tree.map(lambda a, b: jnp.where(ends, a, b), rolled, state)

    def observe(state: DwaState, values: Array) -> DwaState:
        measured = jnp.isfinite(values)
        return roll(state, jnp.where(measured, values, 0), measured)

    waits = (observe, False, "losses") if epoch == 0 else ()
    return Balancer(Rule("losses", init, weigh, *waits), num_tasks)


class FamoState(NamedTuple):
    """The logits under their optimiser, and the losses that the last step's weights acted on."""

    logits: Learned
    before: Array
    pending: Array


def famo(
    num_tasks: int,
    learning_rate: float = 0.025,
    weight_decay: float = 1e-3,
    minimum: float | Sequence[float] = 0.0,
    after: str = "next",
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
    choose(after, ("next", "same"), "famo.after")
    floor = task_vector(minimum, num_tasks, "famo.minimum")
    inner = optax.chain(optax.add_decayed_weights(weight_decay), optax.adam(learning_rate))

    def init(rows: Rows, num_tasks: int) -> FamoState:
        zeros = jnp.zeros((num_tasks,), rule_dtype(rows))
        return FamoState(learned_init(inner, zeros), zeros, jnp.zeros((num_tasks,), bool))

    def distance(losses: Array, dtype: jnp.dtype) -> Array:
        return jnp.maximum(losses.astype(dtype) - jnp.asarray(floor, dtype), 0) + 1e-8

    def learn(state: FamoState, losses: Array, measured: Array) -> FamoState:
        """One step of xi for tasks whose loss is known both before and after."""
        both = state.pending & measured
        now = distance(jnp.where(measured, losses, 0), state.before.dtype)
        fall = jnp.where(both, jnp.log(jnp.where(both, state.before, 1)) - jnp.log(now), 0)
        z = masked_softmax(state.logits.values, both)
        gradient = z * (fall - z @ fall)
        logits = learned_step(inner, state.logits, gradient, both)
        return state._replace(logits=logits, pending=state.pending & ~measured)

    def weigh(state: FamoState, evidence: Evidence) -> tuple[Array, FamoState]:
        present = evidence.present
        if after == "next":
            state = learn(state, evidence.losses, present)
        now = distance(evidence.losses, state.before.dtype)
        ratio = jnp.where(present, masked_softmax(state.logits.values, present) / now, 0)
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
    reference: float | Sequence[float] = 1.0,
    favour: str = "better",
    higher_is_better: bool | Sequence[bool] = True,
    gamma: float = 1.0,
    decay: float = 0.0,
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
    choose(favour, ("better", "worse", "focal"), "performance.favour")
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
        scale = jnp.asarray(references, ratio.dtype)
        new = jnp.where(jnp.asarray(higher), metric / scale, scale / metric)
        blended = jnp.where(seen, decay * ratio + (1 - decay) * new, new)
        chosen = jnp.where(measured, blended, ratio)
        return chosen, seen | measured

    return Balancer(Rule("losses", init, weigh, observe, observes="metrics"), num_tasks)
