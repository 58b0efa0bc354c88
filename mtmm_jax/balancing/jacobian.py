"""Methods that need every task's full gradient: signs, ranks or averages, coordinate by coordinate.

They return a gradient `{path: [...]}`, or weights where weights suffice. Costs: K task gradients
in memory, and as much again for those that average them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from mtmm_jax.balancing import solvers
from mtmm_jax.balancing.base import (
    Array,
    Balancer,
    Evidence,
    Geometry,
    RandomState,
    Rows,
    Rule,
    WeightedGradient,
    as_number,
    balancing_dtype,
    combine,
    mask_gramian,
    measure,
    per_task,
    random_init,
    random_next,
    random_state,
    row_norms,
    rule_dtype,
    scale_rows,
    select_tasks,
    stateless,
    task_array,
    task_vector,
)
from mtmm_jax.balancing.gramian import random_orders, weights_of_units
from mtmm_jax.balancing.gramian_stateful import restrict, write_back
from mtmm_jax.balancing.wrappers import grouped
from mtmm_jax.ranges import Cosine, Decay, Natural, NonNegative, Positive, Share
from mtmm_jax.registry import ConfigError

_LARGE = 1e30
"""Beyond what any weight follows from, and within float32."""


def _buffers(rows: Rows) -> Rows:
    """Zeros like the task gradients, in balancing precision."""
    return {path: jnp.zeros(g.shape, balancing_dtype(g.dtype)) for path, g in rows.items()}


def _known(buffers: Rows, grads: Rows) -> Rows:
    """The buffers of the leaves that are balanced in this step."""
    missing = sorted(set(grads) - set(buffers))
    if missing:
        raise ConfigError(
            f"balancing: no buffer for {missing}; the balancer was initialised with other "
            "shared leaves than it is used with"
        )
    return {path: buffers[path] for path in grads}


def graddrop(num_tasks: int, leak: Share | Sequence[Share] = 0.0, seed: Natural = 0) -> Balancer:
    """GradDrop: at each coordinate keep one sign only, by chance: `P = 1/2 (1 + sum g / sum |g|)`,
    one `U ~ U(0, 1)` for all tasks; keep `g > 0` where `P > U` and `g < 0` where `P < U`. Task k
    contributes `(leak_k + (1 - leak_k) kept) g_k`.

    Paper: Chen et al., NeurIPS 2020.
    Cost: O(K P), a random number per coordinate.
    Use it: stochastic escape from joint minima of conflicting signs. Not: small steps budgets; it
    adds noise.

    Args:
        num_tasks: K.
        leak: the share of the dropped part that is kept, 0 to 1: one number or K of them.
        seed: of the draws.
    """
    leaks = task_vector(leak, num_tasks, "graddrop.leak")

    def weigh(state: RandomState, evidence: Evidence) -> tuple[Rows, RandomState]:
        key, state = random_next(state)
        keys = jax.random.split(key, len(evidence.grads))
        chosen = {}
        for one_key, (path, g) in zip(keys, sorted(evidence.grads.items()), strict=True):
            draws = jax.random.uniform(one_key, g.shape[1:], balancing_dtype(g.dtype))
            chosen[path] = drop_signs(g, draws, task_array(leaks, draws.dtype))
        return chosen, state

    return Balancer(Rule("jacobian", random_init(seed), weigh, reads_losses=False), num_tasks)


def drop_signs(grads: Array, draws: Array, leak: Array) -> Array:
    """GradDrop's sum of a leaf `[K, ...]` for given uniform draws `[...]` and leaks `[K]`."""
    g = grads.astype(draws.dtype)
    # Shares of the largest, so that sums stay in range.
    largest = jnp.max(jnp.abs(g), axis=0)
    share = g / jnp.where(largest > 0, largest, 1)
    magnitude = jnp.abs(share).sum(0)
    purity = 0.5 * (1 + share.sum(0) / jnp.where(magnitude > 0, magnitude, 1))
    keep = jnp.where((purity > draws)[None], g > 0, (purity < draws)[None] & (g < 0))
    return jnp.sum(jnp.where(keep, g, per_task(leak, g) * g), axis=0).astype(grads.dtype)


def trimmed_mean(num_tasks: int, trim: Natural = 1) -> Balancer:
    """Trimmed mean: at each coordinate drop the `trim` largest and smallest values, average the
    rest (with few tasks, as many as leave one).

    Paper: Yin et al., ICML 2018.
    Cost: O(K log K P), a sort per coordinate.
    Use it: outliers among tasks or workers. Not: tasks that each own coordinates: theirs are
    trimmed away.

    Args:
        num_tasks: K.
        trim: how many at each end.
    """

    def weigh(state: tuple[()], evidence: Evidence) -> tuple[Rows, tuple[()]]:
        count = evidence.present.sum()
        cut = jnp.minimum(trim, (jnp.maximum(count, 1) - 1) // 2)
        ranks = jnp.arange(num_tasks)
        kept = (ranks >= cut) & (ranks < count - cut)
        share = solvers.uniform(kept, evidence.losses.dtype)

        def one(g: Array) -> Array:
            last = jnp.where(per_task(evidence.present, g), g, jnp.inf)
            ordered = jnp.sort(last, axis=0)  # absent tasks come last
            used = jnp.where(per_task(kept, g), ordered, 0)
            return combine(share, used)

        return {path: one(g) for path, g in evidence.grads.items()}, state

    return Balancer(Rule("jacobian", stateless, weigh, reads_losses=False), num_tasks)


class MocoState(NamedTuple):
    """Tracked gradients y, weights lambda, and steps per task and in all."""

    tracked: Rows
    weights: Array
    count: Array
    step: Array


def moco(
    num_tasks: int,
    beta: Positive = 0.5,
    gamma: Positive = 0.1,
    rho: NonNegative = 0.0,
    sigma: Share = 0.5,
    projection: Literal["softmax", "simplex"] = "softmax",
) -> Balancer:
    """MoCo: tracked gradients `y <- y - b_t (y - L g / ||g||)`, weights by one step on
    `Y Y^T + rho I`, `v = Y^T lambda`; `b_t = beta / t^sigma`, step `gamma / t^sigma`.

    Paper: Fernando et al., ICLR 2023.
    Cost: one K x P buffer.
    Use it: MGDA with small batches: tracking removes its bias. Not: when K x P is too large.

    Args:
        num_tasks: K.
        beta: rate of tracking.
        gamma: rate of the weights.
        rho: pull towards equal weights.
        sigma: how the rates fall; 0 keeps them.
        projection: back to the simplex by `"softmax"` (as in its code) or `"simplex"`.
    """

    def init(rows: Rows, num_tasks: int) -> MocoState:
        return MocoState(
            _buffers(rows),
            jnp.full((num_tasks,), 1 / num_tasks, rule_dtype(rows)),
            jnp.zeros((num_tasks,), jnp.int32),
            jnp.zeros((), jnp.int32),
        )

    def weigh(state: MocoState, evidence: Evidence) -> tuple[Rows, MocoState]:
        present, dtype = evidence.present, state.weights.dtype
        norms = evidence.geometry.norms
        scale = jnp.where(present, solvers.divide(evidence.losses, norms), 0).astype(dtype)
        count, step = state.count + 1, state.step + 1
        first_rate, last_rate, power, pull = (
            as_number(x, dtype) for x in (beta, gamma, sigma, rho)
        )
        rate = first_rate / count.astype(dtype) ** power

        def track(y: Array, g: Array) -> Array:
            return y - scale_rows(rate, y - scale_rows(scale, g.astype(y.dtype)))

        known = _known(state.tracked, evidence.grads)
        tracked = jax.tree.map(track, known, evidence.grads)
        tracked = select_tasks(present, tracked, known)
        geometry, _ = measure(tracked, present)
        gramian = geometry.gramian.astype(dtype)
        start = restrict(state.weights, present)
        length = last_rate / step.astype(dtype) ** power
        masked = mask_gramian(present, gramian / num_tasks)  # of the clipped ends, too
        moved = start - length * (masked @ start * num_tasks + pull * start)
        moved = jnp.clip(moved, -_LARGE, _LARGE)
        if projection == "softmax":
            weights = solvers.masked_softmax(moved, present)
        else:
            weights = solvers.project_simplex(moved, present)
        mixed = combine(jnp.where(present, weights, 0), tracked)
        gradient = {path: mixed[path].astype(g.dtype) for path, g in evidence.grads.items()}
        state = MocoState(
            state.tracked | tracked,
            write_back(weights, state.weights, present),
            jnp.where(present, count, state.count),
            step,
        )
        return WeightedGradient(gradient, weights), state

    return Balancer(Rule("jacobian", init, weigh), num_tasks)


class DbMtlState(NamedTuple):
    """Averaged gradients of the log losses, and steps per task."""

    averaged: Rows
    count: Array


def db_mtl(num_tasks: int, beta: Decay = 0.9, sigma: Share = 0.0) -> Balancer:
    """DB-MTL: gradients of `log L_k`, averaged over steps, brought to the largest norm:
    `v = sum_k (max_j ||m_j|| / ||m_k||) m_k`, `m <- b m + (1 - b) grad log L`, `b = beta/t^sigma`.

    Paper: Lin et al., 2023 (dual-balancing).
    Cost: one K x P buffer.
    Use it: losses and gradients of different scales, positive losses. Not: losses that reach zero.

    Args:
        num_tasks: K.
        beta: of the average; 0 is none (but keeps the buffer).
        sigma: how beta falls.
    """

    def init(rows: Rows, num_tasks: int) -> DbMtlState:
        return DbMtlState(_buffers(rows), jnp.zeros((num_tasks,), jnp.int32))

    def weigh(state: DbMtlState, evidence: Evidence) -> tuple[Rows, DbMtlState]:
        present, dtype = evidence.present, evidence.losses.dtype
        count = state.count + 1
        keep = as_number(beta, dtype) / count.astype(dtype) ** as_number(sigma, dtype)
        inverse = jnp.where(present, 1 / (jnp.where(present, evidence.losses, 1) + 1e-8), 0)

        def average(m: Array, g: Array) -> Array:
            log_gradient = scale_rows(inverse, g.astype(m.dtype))
            blended = scale_rows(keep, m) + scale_rows(1 - keep, log_gradient)
            return jnp.where(per_task(state.count == 0, m), log_gradient, blended)

        known = _known(state.averaged, evidence.grads)
        averaged = select_tasks(present, jax.tree.map(average, known, evidence.grads), known)
        norms = jnp.where(present, row_norms(averaged).astype(dtype), 0)
        weights = jnp.where(present, solvers.divide(jnp.ones_like(norms), norms / norms.max()), 0)
        weights = jnp.where(norms.max() > 0, weights, 0)
        mixed = combine(weights, averaged)
        gradient = {path: mixed[path].astype(g.dtype) for path, g in evidence.grads.items()}
        count = jnp.where(present, count, state.count)
        return WeightedGradient(gradient, weights), DbMtlState(state.averaged | averaged, count)

    return Balancer(Rule("jacobian", init, weigh), num_tasks)


class ExcessState(NamedTuple):
    """Roots of the summed squared gradients, weights, and the excess risks to compare with."""

    roots: Rows
    weights: Array
    first: Array
    count: Array


def excess_mtl(num_tasks: int, step: Positive = 1.0, warmup: Natural = 0) -> Balancer:
    """ExcessMTL: weights follow the estimated excess risk:
    `S += g^2`, `e = sum g^2 / sqrt(S + 1e-7)`, `w ~ w exp(step e / e_0)`.

    e_0 is a task's first e, and the first step takes e itself, as in the published code. With a
    warm-up, which the paper recommends (three epochs), weights stand still during its steps and e_0
    is the mean over them.

    Paper: He et al., ICML 2024.
    Cost: one K x P buffer.
    Use it: noisy labels in some tasks. Not: when K x P is too large.

    Args:
        num_tasks: K.
        step: of the weights.
        warmup: its steps, per task.
    """

    def init(rows: Rows, num_tasks: int) -> ExcessState:
        dtype = rule_dtype(rows)
        return ExcessState(
            _buffers(rows),
            jnp.full((num_tasks,), 1 / num_tasks, dtype),
            jnp.zeros((num_tasks,), dtype),
            jnp.zeros((num_tasks,), jnp.int32),
        )

    def weigh(state: ExcessState, evidence: Evidence) -> tuple[Array, ExcessState]:
        present, dtype = evidence.present, state.weights.dtype
        known = _known(state.roots, evidence.grads)
        roots = jax.tree.map(lambda s, g: jnp.hypot(s, g.astype(s.dtype)), known, evidence.grads)
        excess = jnp.minimum(sum(map(_excess, evidence.grads.values(), roots.values())), _LARGE)
        excess = excess.astype(dtype)
        wait = jnp.maximum(warmup, 1)
        share = 1 / (state.count + 1).astype(dtype)
        mean = state.first + share * (excess - state.first)
        first = jnp.where(present & (state.count < wait), mean, state.first)
        waiting = jnp.where(jnp.asarray(warmup) > 0, 0, excess)
        ratio = jnp.minimum(excess / (first + 1e-7), _LARGE)
        relative = jnp.where(state.count < wait, waiting, ratio)
        start = restrict(state.weights, present)
        logits = jnp.log(jnp.maximum(start, jnp.finfo(dtype).tiny))
        weights = solvers.masked_softmax(logits + as_number(step, dtype) * relative, present)
        state = ExcessState(
            state.roots | select_tasks(present, roots, known),
            write_back(weights, state.weights, present),
            first,
            state.count + present.astype(jnp.int32),
        )
        return weights, state

    return Balancer(Rule("jacobian", init, weigh, reads_losses=False), num_tasks)


def _excess(gradient: Array, root: Array) -> Array:
    """`[K]` sums of `g^2 / sqrt(root^2 + 1e-7)`, whose terms are at most |g|."""
    g = jnp.abs(gradient.astype(root.dtype))
    terms = g * (g / jnp.hypot(root, jnp.asarray(1e-7**0.5, root.dtype)))
    return jnp.sum(terms.reshape(len(g), -1), axis=1)


class GradVacState(NamedTuple):
    """The target similarity of every ordered pair, and the randomness."""

    target: Array
    random: RandomState


def gradvac(
    num_tasks: int,
    beta: Share = 0.5,
    target: Cosine = 0.0,
    groups: Literal["whole", "layer", "matrix"] = "whole",
    seed: Natural = 0,
) -> Balancer:
    """GradVac: as PCGrad, but where `phi = cos(c_i, g_j)` falls below the target `rho_ij`:
    `c_i += ||c_i|| (rho sqrt(1 - phi^2) - phi sqrt(1 - rho^2)) / (||g_j|| sqrt(1 - rho^2)) g_j`,
    after which their cosine is rho; then `rho <- (1 - beta) rho + beta phi`.

    Paper: Wang et al., ICLR 2021.
    Cost: O(K^3) on the Gramian with `groups="whole"`; K task gradients per group otherwise.
    Use it: many related tasks (languages) with positive typical similarity. Not: when an answer
    that does not depend on the order of tasks is wanted.

    Args:
        num_tasks: K.
        beta: rate of the target similarities.
        target: the first rho.
        groups: `"whole"` model, each `"layer"` (all leaves of one module) or each `"matrix"`.
        seed: of the random orders.
    """

    def init(rows: Rows, num_tasks: int) -> GradVacState:
        rho = jnp.full((num_tasks, num_tasks), target, rule_dtype(rows))
        return GradVacState(rho, random_state(seed))

    def weigh(state: GradVacState, evidence: Evidence) -> tuple[Array, GradVacState]:
        key, random = random_next(state.random)
        weights, rho = gradvac_weights(
            jax.tree.map(lambda x: x.astype(state.target.dtype), evidence.geometry),
            evidence.present,
            random_orders(key, num_tasks),
            state.target,
            beta,
        )
        return weights, GradVacState(rho, random)

    whole = Balancer(Rule("gramian", init, weigh, reads_losses=False), num_tasks)
    if groups == "whole":
        return whole
    return grouped(whole, by=groups)


def gradvac_weights(
    geometry: Geometry, present: Array, orders: Array, target: Array, beta: float
) -> tuple[Array, Array]:
    """Weights and the next targets, for given orders `[K, K]` (row i: the order for task i)."""
    norms, cosines = geometry
    tasks = jnp.arange(len(norms))
    usable = present & (norms > 0)
    beta = as_number(beta, norms.dtype)

    def repair(carry: tuple[Array, Array, Array], js: Array) -> tuple[tuple, None]:
        coefficients, products, rho_all = carry  # a_i and C a_i, as rows, of unit gradients
        chosen = js[:, None] == tasks[None, :]

        def pick(table: Array) -> Array:
            return jnp.sum(jnp.where(chosen, table, 0), axis=1)

        length = jnp.sqrt(jnp.maximum(jnp.sum(coefficients * products, axis=1), 0))
        counts = (js != tasks) & usable[js] & usable & (length > 0)
        phi = pick(products) / jnp.where(length > 0, length, 1)
        phi = jnp.clip(phi, -1, 1)
        rho = pick(rho_all)
        below = counts & (phi < rho)
        root = jnp.sqrt(jnp.maximum(1 - rho**2, 1e-12))
        step = length * (rho * jnp.sqrt(1 - phi**2) - phi * root) / root
        step = jnp.where(below, step, 0)
        coefficients = coefficients + jnp.where(chosen, step[:, None], 0)
        products = products + step[:, None] * cosines[js]
        learned = jnp.where(counts, (1 - beta) * rho + beta * phi, rho)
        return (coefficients, products, jnp.where(chosen, learned[:, None], rho_all)), None

    start = (jnp.diag(present.astype(norms.dtype)), cosines, target)
    (coefficients, _, target), _ = jax.lax.scan(repair, start, orders.T)
    return weights_of_units(coefficients, geometry, present), target
