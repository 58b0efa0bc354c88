"""Gramian tier with memory: weights under their own descent, averaged norms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from mtmm_jax.balancing import solvers
from mtmm_jax.balancing.base import (
    Array,
    Balancer,
    Evidence,
    Rows,
    Rule,
    as_number,
    rule_dtype,
    select_tasks,
    task_array,
    task_vector,
)
from mtmm_jax.balancing.gramian import Preference, preference_of
from mtmm_jax.balancing.losses import Learned, learned_init, learned_step
from mtmm_jax.ranges import Count, Decay, Natural, NonNegative, Positive, Real, Share
from mtmm_jax.registry import ConfigError


def restrict(weights: Array, present: Array) -> Array:
    """Simplex weights of the present tasks alone, summing to one (equal if they had none)."""
    kept = jnp.where(present, weights, 0)
    sums = kept.sum()
    even = solvers.uniform(present, weights.dtype)
    return jnp.where(sums > 0, kept / jnp.where(sums > 0, sums, 1), even)


def write_back(weights: Array, old: Array, present: Array) -> Array:
    """New weights of the present tasks, which share what the absent ones leave them."""
    return jnp.where(present, weights * jnp.sum(jnp.where(present, old, 0)), old)


class GradNormState(NamedTuple):
    """The weights under their optimiser, and each task's first loss."""

    weights: Learned
    first: Array
    seen: Array


def gradnorm(num_tasks: int, alpha: NonNegative = 1.5, learning_rate: Positive = 0.025) -> Balancer:
    """GradNorm: weights under gradient descent on `sum_k |w_k ||g_k|| - target_k|`,
    `target_k = mean_j(w_j ||g_j||) r_k^alpha` held constant, `r_k = (L_k / L_k0) / mean`;
    renormalised to sum K.

    Paper: Chen et al., ICML 2018.
    Cost: the norms of the task gradients at the shared layer: those at the cut.
    Use it: tasks should train at like rates. Not: losses whose first value is not typical.

    Args:
        num_tasks: K.
        alpha: how strongly slow tasks are favoured.
        learning_rate: of Adam on the weights.
    """
    inner = optax.adam(learning_rate)

    def init(rows: Rows, num_tasks: int) -> GradNormState:
        ones = jnp.ones((num_tasks,), rule_dtype(rows))
        return GradNormState(learned_init(inner, ones), ones, jnp.zeros((num_tasks,), bool))

    def weigh(state: GradNormState, evidence: Evidence) -> tuple[Array, GradNormState]:
        present, dtype = evidence.present, state.first.dtype
        count = solvers.task_count(present, dtype)
        losses = evidence.losses.astype(dtype)
        first = jnp.where(present & ~state.seen, losses, state.first)
        raw = jnp.where(present, state.weights.values, 0)
        weights = raw * count / jnp.maximum(raw.sum(), jnp.finfo(dtype).tiny)
        largest = float(jnp.finfo(dtype).max) ** 0.4  # Adam squares it
        norms = jnp.minimum(evidence.geometry.norms.astype(dtype), largest)
        rates = jnp.where(present, losses / jnp.where(first != 0, first, 1), 0)
        rates = rates / jnp.maximum(rates.sum() / count, jnp.finfo(dtype).tiny)
        target = jnp.sum(weights * norms) / count * jnp.maximum(rates, 0) ** alpha
        gradient = jnp.sign(weights * norms - target) * norms
        moved = learned_step(inner, Learned(weights, state.weights.inner), gradient, present)
        values = jnp.where(present, jnp.maximum(moved.values, 1e-6), 0)
        values = values * count / jnp.maximum(values.sum(), jnp.finfo(dtype).tiny)
        kept = Learned(jnp.where(present, values, state.weights.values), moved.inner)
        inner_state = select_tasks(present, kept.inner, state.weights.inner)
        state = GradNormState(Learned(kept.values, inner_state), first, state.seen | present)
        return weights, state

    return Balancer(Rule("gramian", init, weigh), num_tasks)


def _simplex_init(rows: Rows, num_tasks: int) -> Array:
    return jnp.full((num_tasks,), 1 / num_tasks, rule_dtype(rows))


def modo(num_tasks: int, gamma: Positive = 0.1, rho: NonNegative = 0.1) -> Balancer:
    """MoDo: one projected step per iteration on two independent samples,
    `w <- simplex(w - gamma (J1 J2^T w + rho w))`; `v = J^T w`.

    Paper: Chen, Fernando, Ying & Chen, NeurIPS 2023.
    Cost: a second batch of task gradients.
    Use it: stochastic multi-objective descent with unbiased directions. Not: when twice the
    gradients are too dear.

    Args:
        num_tasks: K.
        gamma: step length.
        rho: pull towards equal weights.
    """

    def weigh(state: Array, evidence: Evidence) -> tuple[Array, Array]:
        present = evidence.present
        weights = restrict(state, present)
        cross = evidence.other.astype(state.dtype)
        weights = solvers.project_simplex(
            weights - gamma * (cross @ weights + rho * weights), present
        )
        return weights, write_back(weights, state, present)

    return Balancer(
        Rule("gramian", _simplex_init, weigh, second_sample=True, reads_losses=False), num_tasks
    )


def sdmgrad(
    num_tasks: int,
    lam: NonNegative = 0.3,
    learning_rate: Positive = 10.0,
    momentum: Decay = 0.5,
    iterations: Count = 20,
    preference: Preference = None,
) -> Balancer:
    """SDMGrad: direction-oriented stochastic MGDA: SGD on `1/2 w^T A w + lam w^T A p` over the
    simplex, `A = J1 J2^T`, `v = J^T (w + lam p) / (1 + lam)` for a preference p.

    The cross Gramian is divided by the square of its rows' mean norm first. The paper takes v on a
    third batch; here it is of the first one, which costs no more gradients.

    Paper: Xiao, Ban & Ji, NeurIPS 2023.
    Cost: a second batch of task gradients, 20 products of size K.
    Use it: as MGDA, with small batches. Not: when twice the gradients are too dear.

    Args:
        num_tasks: K.
        lam: pull towards the mean gradient.
        learning_rate: of SGD on w.
        momentum: of SGD on w.
        iterations: SGD steps in each iteration.
        preference: p, one number or K of them, scaled to sum one; `1/K` by default.
    """
    preferred = preference_of(preference, num_tasks, "sdmgrad.preference")

    def weigh(state: Array, evidence: Evidence) -> tuple[Array, Array]:
        present, dtype = evidence.present, state.dtype
        cross = evidence.other.astype(dtype)
        pull, rate, keep = (as_number(x, dtype) for x in (lam, learning_rate, momentum))
        norms = jnp.sqrt(jnp.maximum(jnp.diagonal(cross), 0))
        scale = solvers.masked_sum(norms, present) / solvers.task_count(present, dtype)
        # As divided by scale^2 + 1e-8, in an order that does not overflow.
        floor = jnp.hypot(scale, jnp.asarray(1e-4, dtype))
        cross = cross / floor / floor
        wanted = restrict(preferred(present, dtype), present)

        def step(_: int, carry: tuple[Array, Array]) -> tuple[Array, Array]:
            weights, velocity = carry
            velocity = keep * velocity + cross @ (weights + pull * wanted)
            return solvers.project_simplex(weights - rate * velocity, present), velocity

        start = restrict(state, present)
        weights, _ = jax.lax.fori_loop(0, iterations, step, (start, jnp.zeros_like(start)))
        return (weights + pull * wanted) / (1 + pull), write_back(weights, state, present)

    return Balancer(
        Rule("gramian", _simplex_init, weigh, second_sample=True, reads_losses=False), num_tasks
    )


def learned(num_tasks: int, learning_rate: Positive = 0.1, held_out: bool = True) -> Balancer:
    """Weights learned by back-propagation through one look-ahead step: the held-out loss
    `sum_j L_j(theta - eta J1^T w)` falls along `d/dw = -eta J1 J2^T 1`, so
    `w <- simplex(w + learning_rate J1 J2^T 1 / scale)`.

    `scale` is the largest absolute entry of the hypergradient, so the rate is free of units.

    Paper: the one-step look-ahead of Ren et al., ICML 2018, with tasks in place of examples.
    Cost: a second (held-out) batch of task gradients; none with `held_out=False`.
    Use it: a held-out batch says what should generalise. Not: with `held_out=False` it only
    follows the tasks most aligned with the sum.

    Args:
        num_tasks: K.
        learning_rate: on the simplex.
        held_out: take the hypergradient on the second batch rather than on the training batch.
    """

    def weigh(state: Array, evidence: Evidence) -> tuple[Array, Array]:
        present = evidence.present
        cross = (evidence.other if held_out else evidence.gramian).astype(state.dtype)
        gain = (cross / num_tasks).sum(1)  # of the clipped ends of the dtype, too
        largest = jnp.max(jnp.abs(gain))
        gain = gain / jnp.where(largest > 0, largest, 1)
        start = restrict(state, present)
        weights = solvers.project_simplex(start + learning_rate * gain, present)
        return weights, write_back(weights, state, present)

    rule = Rule("gramian", _simplex_init, weigh, second_sample=held_out, reads_losses=False)
    return Balancer(rule, num_tasks)


def auto_lambda(
    num_tasks: int,
    learning_rate: Positive = 1e-4,
    step: Positive = 0.1,
    init: Real = 0.1,
    primary: Sequence[Natural] | None = None,
) -> Balancer:
    """Auto-Lambda: task weights by gradient descent through one step of the model: the validation
    loss of the primary tasks after a step of size `step` along the weighted gradient falls along
    `d/dw = -step J1 J2^T p`, p their indicator; w under Adam, raw (may turn negative).

    J2 is `other`: gradients on held-out samples. The published code takes them at the parameters
    after the virtual step, and `J1 J2^T` as a finite difference of the training losses along them;
    give those to the Optax transformation as `other`, and it is the published method over the
    leaves that are shared. `value_and_grad` takes them at the parameters as they are.

    Paper: Liu et al., TMLR 2022 (arXiv 2202.03091).
    Cost: a second batch of task gradients.
    Use it: some tasks are there to help others. Not: when twice the gradients are too dear, or in
    short runs: w moves by about the learning rate a step.

    Args:
        num_tasks: K.
        learning_rate: of Adam on w.
        step: the model's learning rate.
        init: the first weights.
        primary: which tasks count on held-out samples, by index; all by default.
    """
    chosen = tuple(range(num_tasks)) if primary is None else tuple(primary)
    if not chosen or not all(0 <= k < num_tasks for k in chosen):
        raise ConfigError(f"auto_lambda.primary: {chosen} are not among {num_tasks} tasks")
    mask = tuple(float(k in chosen) for k in range(num_tasks))
    inner = optax.adam(learning_rate)

    def begin(rows: Rows, num_tasks: int) -> Learned:
        start = jnp.broadcast_to(jnp.asarray(init, rule_dtype(rows)), (num_tasks,))
        return learned_init(inner, start)

    def weigh(state: Learned, evidence: Evidence) -> tuple[Array, Learned]:
        dtype = state.values.dtype
        gain = evidence.other.astype(dtype) @ jnp.asarray(mask, dtype)
        bound = float(jnp.finfo(dtype).max) ** 0.4  # Adam squares it
        slope = jnp.clip(-as_number(step, dtype) * gain, -bound, bound)
        state = learned_step(inner, state, slope, evidence.present)
        return state.values, state

    rule = Rule("gramian", begin, weigh, second_sample=True, reads_losses=False)
    return Balancer(rule, num_tasks)


class PcdState(NamedTuple):
    """Roots of the averaged squared norms, and how often each was seen."""

    roots: Array
    count: Array


def pcd(
    num_tasks: int,
    tau: Share | Sequence[Share] = 0.02,
    decay: Decay = 0.999,
    eps: NonNegative = 1e-8,
) -> Balancer:
    """PCD: stay as close to the main task as the others allow: with scaled gradients
    `h_k = g_k / sqrt(v_k + eps)`, `min ||d - h_1||^2` such that `<h_k, d> >= tau_k ||h_k||^2` for
    all others; the update is d at the length of `g_1`.

    v_k is the bias-corrected running mean of `||g_k||^2`. The first present task is the main one.
    Its dual is a nonnegative QP: `d = h_1 + sum_k z_k h_k`. The update is `g_1` where the
    constraints exclude each other, and zero where `g_1` or d is.

    Paper: Priority-Constrained Descent, TMLR 2026 (arXiv 2606.29521), as torchjd 0.18 has it.
    Cost: one quadratic program of size K.
    Use it: one main task with auxiliary ones that must not be harmed. Not: tasks of equal rank.

    Args:
        num_tasks: K.
        tau: the progress required of the tasks but the first: one number, or K - 1.
        decay: of the running means.
        eps: added to them.
    """
    required = task_vector(tau, max(num_tasks - 1, 1), "pcd.tau, all tasks but the first")

    def init(rows: Rows, num_tasks: int) -> PcdState:
        return PcdState(
            jnp.zeros((num_tasks,), rule_dtype(rows)), jnp.zeros((num_tasks,), jnp.int32)
        )

    def weigh(state: PcdState, evidence: Evidence) -> tuple[Array, PcdState]:
        present, dtype = evidence.present, state.roots.dtype
        norms, cosines = (x.astype(dtype) for x in evidence.geometry)
        beta = as_number(decay, dtype)
        count = state.count + present.astype(jnp.int32)
        mixed = jnp.hypot(jnp.sqrt(beta) * state.roots, jnp.sqrt(1 - beta) * norms)
        roots = jnp.where(present, mixed, state.roots)
        # 1 - beta^t, also where t is so small that it would be rounded
        seen = jnp.where(beta > 0, -jnp.expm1(count.astype(dtype) * jnp.log(beta)), 1)
        unbiased = roots / jnp.sqrt(jnp.where(seen > 0, seen, 1))
        scaled = norms / jnp.hypot(unbiased, jnp.sqrt(as_number(eps, dtype)))
        thresholds = task_array(required, dtype)[: num_tasks - 1]
        thresholds = jnp.concatenate([jnp.ones((1,), dtype), thresholds])
        weights = _nearest_within(cosines, norms, scaled, thresholds, present)
        return weights, PcdState(roots, count)

    return Balancer(Rule("gramian", init, weigh, reads_losses=False), num_tasks)


def _nearest_within(
    cosines: Array, norms: Array, scaled: Array, tau: Array, present: Array
) -> Array:
    """PCD's weights, from the norms before and after scaling."""
    size, dtype = len(norms), norms.dtype
    main = jnp.arange(size) == jnp.argmax(present)
    usable = present & (norms > 0)
    others = usable & ~main
    start = jnp.sum(jnp.where(main & usable, scaled, 0))
    bound = jnp.where(others, tau * scaled, 0)
    linear = jnp.where(others, start * (cosines @ main.astype(dtype)) - bound, 0)
    y = solvers.nonnegative_qp(cosines, linear[None, :], others).values[0]
    # `<u_k, d> >= bound_k` exclude each other where zero is a convex combination of u_k / bound_k.
    least = 1e-6 * jnp.max(bound)
    lengths = jnp.where(others, 1 / jnp.where(others, jnp.maximum(bound, least), 1), 0)
    nearest = solvers.min_norm_point(cosines, lengths, others & (least > 0)).squared
    feasible = ~(others & (least > 0)).any() | (nearest > 16 * size * jnp.finfo(dtype).eps)
    units = jnp.where(feasible, y, 0) + jnp.where(main, start, 0)
    length = jnp.sqrt(jnp.maximum(units @ (cosines @ units), 0))
    some = length**2 > 10 * jnp.finfo(dtype).eps * jnp.sum(units) ** 2
    direction = jnp.where(some, units / jnp.where(some, length, 1), 0)
    wanted = jnp.sum(jnp.where(main, norms, 0))
    ratio = norms / jnp.where(wanted > 0, wanted, 1)
    return jnp.where(wanted > 0, solvers.divide(direction, ratio), 0)
