"""Gramian tier with memory: weights under their own descent, averaged norms."""

from __future__ import annotations

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
    gradient_norms,
    rule_dtype,
    select_tasks,
)
from mtmm_jax.balancing.losses import Learned, learned_init, learned_step
from mtmm_jax.ranges import Count, Decay, NonNegative, Positive


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
        norms = gradient_norms(evidence.gramian).astype(dtype)
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

    return Balancer(Rule("gramian", _simplex_init, weigh, second_sample=True), num_tasks)


def sdmgrad(
    num_tasks: int,
    lam: NonNegative = 0.3,
    learning_rate: Positive = 10.0,
    momentum: Decay = 0.5,
    iterations: Count = 20,
) -> Balancer:
    """SDMGrad: direction-oriented stochastic MGDA: SGD on `1/2 w^T J1 J2^T w + lam w^T J1 g_0`
    over the simplex, `v = J^T (w + lam 1/K) / (1 + lam)`.

    The cross Gramian is divided by the square of its rows' mean norm first.

    Paper: Xiao, Ban & Ji, NeurIPS 2023.
    Cost: a second batch of task gradients, 20 products of size K.
    Use it: as MGDA, with small batches. Not: when twice the gradients are too dear.

    Args:
        num_tasks: K.
        lam: pull towards the mean gradient.
        learning_rate: of SGD on w.
        momentum: of SGD on w.
        iterations: SGD steps in each iteration.
    """

    def weigh(state: Array, evidence: Evidence) -> tuple[Array, Array]:
        present, dtype = evidence.present, state.dtype
        cross = evidence.other.astype(dtype)
        norms = gradient_norms(cross)
        count = solvers.task_count(present, dtype)
        scale = solvers.masked_sum(norms, present) / count
        cross = cross / (scale**2 + 1e-8)
        mean = cross.sum(1) / count

        def step(_: int, carry: tuple[Array, Array]) -> tuple[Array, Array]:
            weights, velocity = carry
            velocity = momentum * velocity + cross @ weights + lam * mean
            return solvers.project_simplex(weights - learning_rate * velocity, present), velocity

        start = restrict(state, present)
        weights, _ = jax.lax.fori_loop(0, iterations, step, (start, jnp.zeros_like(start)))
        final = (weights + lam * present.astype(dtype) / count) / (1 + lam)
        return final, write_back(weights, state, present)

    return Balancer(Rule("gramian", _simplex_init, weigh, second_sample=True), num_tasks)


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
        gain = cross.sum(1)
        largest = jnp.max(jnp.abs(gain))
        gain = gain / jnp.where(largest > 0, largest, 1)
        start = restrict(state, present)
        weights = solvers.project_simplex(start + learning_rate * gain, present)
        return weights, write_back(weights, state, present)

    return Balancer(Rule("gramian", _simplex_init, weigh, second_sample=held_out), num_tasks)


class PcdState(NamedTuple):
    """Averaged gradient norms, and how often each was seen."""

    norms: Array
    count: Array


def pcd(
    num_tasks: int, tau: Positive = 0.02, decay: Decay = 0.999, reg: NonNegative = 0.0
) -> Balancer:
    """PCD: stay as close to the main task as the others allow: with unit gradients
    `u_k = g_k / n_k`, `min ||d - u_1||^2` such that `<u_k, d> >= tau ||u_k||^2`, then d is given
    the length of `g_1`. n_k are running means of the norms. The first present task is the main one.

    Its dual is a nonnegative QP: `d = u_1 + sum_k z_k u_k`.

    Cost: one quadratic program of size K.
    Use it: one main task with auxiliary ones that must not be harmed. Not: tasks of equal rank.

    Args:
        num_tasks: K.
        tau: the progress required for every task.
        decay: of the running norms.
        reg: added to the diagonal of the unit gradients' Gramian.
    """

    def init(rows: Rows, num_tasks: int) -> PcdState:
        return PcdState(
            jnp.zeros((num_tasks,), rule_dtype(rows)), jnp.zeros((num_tasks,), jnp.int32)
        )

    def weigh(state: PcdState, evidence: Evidence) -> tuple[Array, PcdState]:
        present, dtype = evidence.present, state.norms.dtype
        gramian = evidence.gramian.astype(dtype)
        norms = gradient_norms(gramian)
        keep = jnp.where(state.count == 0, 0, decay).astype(dtype)
        averaged = jnp.where(present, keep * state.norms + (1 - keep) * norms, state.norms)
        state = PcdState(averaged, state.count + present.astype(jnp.int32))
        usable = present & (averaged > 0)
        inverse = jnp.where(usable, 1 / jnp.where(usable, averaged, 1), 0)
        scaled = gramian * inverse[:, None] * inverse[None, :]
        main = jnp.arange(num_tasks) == jnp.argmax(present)
        start = main.astype(dtype) * inverse
        linear = scaled @ main.astype(dtype) - tau * jnp.diagonal(scaled)
        system = scaled + reg * jnp.diag(present.astype(dtype))
        z = solvers.nonnegative_qp(system, linear[None, :], usable)[0]
        weights = start + z * inverse
        length = jnp.sqrt(jnp.maximum(weights @ gramian @ weights, 0))
        wanted = jnp.sum(jnp.where(main, norms, 0))
        return weights * wanted / jnp.where(length > 0, length, 1), state

    return Balancer(Rule("gramian", init, weigh), num_tasks)
