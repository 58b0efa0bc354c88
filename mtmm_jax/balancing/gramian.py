"""Methods that need the Gramian `G = J J^T` of the task gradients and remember nothing.

Each returns weights w; the update is `J^T w`, one weighted combination of the task gradients.
Costs are those of the weights, on top of the K task gradients (which the representation engine
gets by one backward pass).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp

from mtmm_jax.balancing import solvers
from mtmm_jax.balancing.base import (
    Array,
    Balancer,
    Evidence,
    Geometry,
    RandomState,
    Rule,
    as_number,
    random_init,
    random_next,
    stateless,
    task_array,
    task_vector,
)
from mtmm_jax.ranges import Count, Natural, NonNegative, Positive
from mtmm_jax.registry import ConfigError

Preference = NonNegative | Sequence[NonNegative] | None


def memoryless(num_tasks: int, weights_of: Callable[[Geometry, Array], Array]) -> Balancer:
    """A balancer whose weights are a function of the gradients' geometry and the mask."""

    def weigh(state: tuple[()], evidence: Evidence) -> tuple[Array, tuple[()]]:
        return weights_of(evidence.geometry, evidence.present), state

    return Balancer(Rule("gramian", stateless, weigh, reads_losses=False), num_tasks)


def preference_of(
    preference: Preference, num_tasks: int, where: str
) -> Callable[[Array, jnp.dtype], Array]:
    """`(mask, dtype) -> ` the preferred weights: `1/K` over the present tasks unless given."""
    if preference is None:
        return solvers.uniform
    fixed = task_vector(preference, num_tasks, where)
    return lambda mask, dtype: mask.astype(dtype) * task_array(fixed, dtype)


def mgda(num_tasks: int) -> Balancer:
    """MGDA: the convex combination of least norm, `min_w w^T G w` over the simplex.

    Its negative descends on every task at once; it is zero exactly at Pareto stationary points,
    and where a task's gradient is zero. For the variants with normalised gradients (l2, loss,
    loss+) see `normalised`.

    Paper: Desideri 2012; Sener & Koltun, NeurIPS 2018.
    Cost: one quadratic program of size K (about 0.1 ms at K = 40), to full accuracy.
    Use it: when a Pareto stationary point itself is wanted. Not: with gradients of very different
    norms, where it follows the smallest.

    Args:
        num_tasks: K.
    """
    return memoryless(
        num_tasks, lambda g, mask: solvers.min_norm_point(g.cosines, g.norms, mask).weights
    )


def pcgrad(num_tasks: int, seed: Natural = 0) -> Balancer:
    """PCGrad: each `g_i`, in random order over `j != i`, loses its component along a conflicting
    `g_j`: if `<g_j, c_i> < 0` then `c_i -= <g_j, c_i> / ||g_j||^2 g_j`; the update is `sum_i c_i`.

    All of it happens on coefficients: `c_i = J^T a_i`, so `<g_j, c_i> = (G a_i)_j`.

    Paper: Yu et al., NeurIPS 2020.
    Cost: O(K^3) arithmetic, no solver.
    Use it: few tasks with occasional strong conflicts. Not: when an answer that does not depend on
    the order of tasks is wanted (UPGrad), or conflicts are mutual among many tasks.

    Args:
        num_tasks: K.
        seed: of the random orders; each row has its own at each step.
    """

    def weigh(state: RandomState, evidence: Evidence) -> tuple[Array, RandomState]:
        key, state = random_next(state)
        orders = random_orders(key, num_tasks)
        return pcgrad_weights(evidence.geometry, evidence.present, orders), state

    return Balancer(Rule("gramian", random_init(seed), weigh, reads_losses=False), num_tasks)


def random_orders(key: Array, num_tasks: int) -> Array:
    """`[K, K]`, an independent random order of all tasks for each task.

    Drawn row by row, so that the orders of the first tasks do not depend on how many follow.
    """
    keys = jax.vmap(lambda task: jax.random.fold_in(key, task))(jnp.arange(num_tasks))
    return jnp.argsort(jax.vmap(lambda k: jax.random.uniform(k, (num_tasks,)))(keys), axis=1)


def pcgrad_weights(geometry: Geometry, present: Array, orders: Array) -> Array:
    """PCGrad's weights for given projection orders `[K, K]` (row i: the order for task i).

    Every gradient is projected as a unit vector; lengths come back at the end.
    """
    norms, cosines = geometry
    tasks = jnp.arange(len(norms))
    usable = present & (norms > 0)

    def project(carry: tuple[Array, Array], js: Array) -> tuple[tuple[Array, Array], None]:
        coefficients, products = carry  # a_i and C a_i, as rows
        along = jnp.take_along_axis(products, js[:, None], axis=1)[:, 0]
        step = jnp.where((js != tasks) & (along < 0) & usable[js], along, 0)
        chosen = js[:, None] == tasks[None, :]
        coefficients = coefficients - jnp.where(chosen, step[:, None], 0)
        return (coefficients, products - step[:, None] * cosines[js]), None

    start = jnp.diag(present.astype(norms.dtype))
    (coefficients, _), _ = jax.lax.scan(project, (start, cosines), orders.T)
    return weights_of_units(coefficients, geometry, present)


def weights_of_units(coefficients: Array, geometry: Geometry, present: Array) -> Array:
    """Weights for the sum over i of `n_i sum_j a_ij u_j`, u the unit gradients."""
    norms = geometry.norms
    longest = jnp.max(norms)
    share = norms / jnp.where(longest > 0, longest, 1)
    weights = solvers.divide(share @ coefficients, share)
    return jnp.where(present, weights, 0)


def cagrad(
    num_tasks: int, c: NonNegative = 0.5, rescale: Literal["none", "1+c", "1+c2"] = "none"
) -> Balancer:
    """CAGrad: `max_d min_k <g_k, d>` within `||d - g_0|| <= c ||g_0||`, `g_0` the mean gradient:
    `w* = argmin over the simplex of w^T G 1/K + c ||g_0|| ||g_w||`,
    `v = g_0 + c ||g_0|| g_w / ||g_w||`.

    At a Pareto stationary point, where g_w may be zero, v is the nearest point to g_0 within the
    ball that conflicts with no task, or as little as the ball allows.

    Paper: Liu et al., NeurIPS 2021.
    Cost: some nonnegative quadratic programs of size K, each starting where the last one ended.
    Use it: a good default where tasks conflict but their mean still matters (c < 1 converges to a
    minimum of the mean loss). Not: with c >= 1 that guarantee is gone.

    Args:
        num_tasks: K.
        c: the radius; 0 is the mean, large values approach MGDA's direction.
        rescale: `"none"`, `"1+c"` or `"1+c2"`: divide by `1 + c` or `1 + c^2`.
    """

    def weights_of(geometry: Geometry, mask: Array) -> Array:
        norms, cosines = geometry
        dtype = norms.dtype
        radius = as_number(c, dtype)
        divisor = {"none": 1.0, "1+c": 1 + radius, "1+c2": 1 + radius**2}[rescale]
        mean = solvers.uniform(mask, dtype)
        longest = jnp.max(norms)
        longest = jnp.where(longest > 0, longest, 1)
        units = mean * norms / longest
        products = cosines @ units
        length = jnp.sqrt(jnp.maximum(units @ products, 0))  # of g_0, in units of the longest
        center = jnp.where(length > 0, products / jnp.where(length > 0, length, 1), 0)
        y = solvers.furthest_common_step(cosines, norms, jnp.clip(center, -1, 1), radius, mask)
        step = solvers.divide(y * length, norms / longest)
        return (mean + step) / divisor

    return memoryless(num_tasks, weights_of)


def nash(num_tasks: int, max_norm: NonNegative = 1.0) -> Balancer:
    """Nash-MTL: the Nash bargaining solution, `G a = 1/a` elementwise; `v = J^T a`.

    `||v||^2 = K` always; `max_norm` clips that. A task with zero gradient gets weight 0.

    Paper: Navon et al., ICML 2022.
    Cost: damped Newton, 5 to 15 Cholesky factorisations of size K (about 0.1 ms at K = 40).
    Use it: invariance to the losses' scales, proportional fairness. Not: close to a Pareto
    stationary point, where the weights grow without bound (the update keeps its length); at one
    the update is zero to rounding.

    Args:
        num_tasks: K.
        max_norm: upper bound on `||v||`; 0 for none.
    """

    def weights_of(geometry: Geometry, mask: Array) -> Array:
        norms, cosines = geometry
        weights = solvers.power_fixed_point(cosines, norms, 1.0, mask)
        units = weights * norms  # of order one whatever the norms are
        norm = jnp.sqrt(jnp.maximum(units @ cosines @ units, 0))
        bound = as_number(max_norm, norm.dtype)
        clipped = (norm > bound) & (bound > 0)
        return weights * jnp.where(clipped, bound / jnp.where(norm > 0, norm, 1), 1)

    return memoryless(num_tasks, weights_of)


def fairgrad(num_tasks: int, alpha: Positive = 1.0) -> Balancer:
    """FairGrad: alpha-fair utilities of the tasks' descent rates, `G w = w^(-1/alpha)`.

    alpha = 1 is Nash's proportional fairness; larger values approach max-min fairness.

    Paper: Ban & Ji, ICML 2024 (its scripts use alpha = 2).
    Cost: damped Newton, as `nash`.
    Use it: a fairness dial between the mean and the worst task. Not: when a fixed step length
    matters; the update's scale depends on alpha and on the gradients' scale.

    Args:
        num_tasks: K.
        alpha: > 0.
    """

    def weights_of(geometry: Geometry, mask: Array) -> Array:
        norms, cosines = geometry
        return solvers.power_fixed_point(cosines, norms, as_number(alpha, norms.dtype), mask)

    return memoryless(num_tasks, weights_of)


def upgrad(num_tasks: int, reg: NonNegative = 1e-4, preference: Preference = None) -> Balancer:
    """UPGrad: every (preferred) gradient projected onto the dual cone of all, then summed:
    `w = sum_i argmin_{v >= u_i e_i} v^T G v`.

    The update conflicts with no task (exactly so at reg = 0), and tasks without conflicts keep
    their mean.

    Paper: Quinton & Rey, 2024 (Jacobian descent).
    Cost: K quadratic programs of size K, solved together (about 0.7 ms at K = 40).
    Use it: the default choice when no task may be sacrificed in a step. Not: when a step should be
    allowed to hurt one task for the others.

    Args:
        num_tasks: K.
        reg: added to the diagonal of the trace-normalised Gramian.
        preference: u, one number or K of them; `1/K` by default.
    """
    preferred = preference_of(preference, num_tasks, "upgrad.preference")

    def weights_of(geometry: Geometry, mask: Array) -> Array:
        norms, cosines = geometry
        lower = jnp.diag(preferred(mask, norms.dtype))
        ridge = as_number(reg, norms.dtype)
        return solvers.cone_projections(cosines, norms, lower, ridge, mask).sum(0)

    return memoryless(num_tasks, weights_of)


def dualproj(num_tasks: int, reg: NonNegative = 1e-4, preference: Preference = None) -> Balancer:
    """DualProj: the mean gradient projected onto the dual cone: `argmin_{v >= u} v^T G v`.

    Paper: Lopez-Paz & Ranzato, NeurIPS 2017 (GEM).
    Cost: one quadratic program of size K.
    Use it: keep to the mean unless it conflicts with a task. Not: when small gradients should count
    (the mean is dominated by the large ones); then UPGrad.

    Args:
        num_tasks: K.
        reg: added to the diagonal of the trace-normalised Gramian.
        preference: u, one number or K of them; `1/K` by default.
    """
    preferred = preference_of(preference, num_tasks, "dualproj.preference")

    def weights_of(geometry: Geometry, mask: Array) -> Array:
        norms, cosines = geometry
        lower = preferred(mask, norms.dtype)[None, :]
        ridge = as_number(reg, norms.dtype)
        return solvers.cone_projections(cosines, norms, lower, ridge, mask)[0]

    return memoryless(num_tasks, weights_of)


def imtl_g(num_tasks: int) -> Balancer:
    """IMTL-G: equal projections of the update on every task's direction, `<v, g_k> / ||g_k||` the
    same for all: `x = D^-1 pinv(C) 1`, `w = x / sum x`, D the norms and C the cosines.

    For independent gradients this is `pinv(G) sqrt(diag G)` as published. Of dependent ones equal
    projections need not exist: these are then the nearest to equal (in the least squares sense) for
    unit gradients, which does not change with the losses' scales as `pinv(G)` does. A task of zero
    gradient weighs 0; the update is zero if `sum x` vanishes.

    Paper: Liu et al., ICLR 2021.
    Cost: one eigendecomposition of size K.
    Use it: tasks should advance alike whatever their losses' scales. Not: with strongly opposed
    tasks, where weights turn negative or huge.

    Args:
        num_tasks: K.
    """

    def weights_of(geometry: Geometry, mask: Array) -> Array:
        norms, cosines = geometry
        usable = mask & (norms > 0)
        ones = usable.astype(norms.dtype)
        shortest = jnp.min(jnp.where(usable, norms, jnp.inf))
        relative = jnp.where(usable, shortest / jnp.where(usable, norms, 1), 0)
        x = relative * solvers.pseudo_inverse_product(cosines, ones, usable)
        sums = x.sum()
        enough = jnp.abs(sums) > 10 * jnp.finfo(x.dtype).eps * jnp.abs(x).sum()
        return jnp.where(enough, x / jnp.where(enough, sums, 1), 0)

    return memoryless(num_tasks, weights_of)


def aligned_mtl(
    num_tasks: int, scale: Literal["min", "median", "rmse"] = "min", preference: Preference = None
) -> Balancer:
    """Aligned-MTL: principal components of the gradient matrix made equally long:
    `G = V L V^T`, `w = sqrt(lambda_s) V L^(-1/2) V^T u`.

    Paper: Senushkin et al., CVPR 2023.
    Cost: one eigendecomposition of size K.
    Use it: dominance and conflict at once, with the losses' preferences kept. Not: with nearly
    linearly dependent gradients, where `scale="min"` makes the step vanish.

    Args:
        num_tasks: K.
        scale: lambda_s: the `"min"`, (lower) `"median"` or mean (`"rmse"`) nonzero eigenvalue.
        preference: u, one number or K of them; `1/K` by default.
    """
    preferred = preference_of(preference, num_tasks, "aligned_mtl.preference")

    def weights_of(geometry: Geometry, mask: Array) -> Array:
        norms, cosines = geometry
        found = solvers.graded_spectrum(cosines, norms, mask)
        rank = found.kept.sum()
        first = num_tasks - rank  # values ascend: the kept ones are at the end
        chosen = {
            "min": found.values[jnp.minimum(first, num_tasks - 1)],
            "median": found.values[jnp.minimum(first + (rank - 1) // 2, num_tasks - 1)],
            "rmse": jnp.sqrt(jnp.sum(found.values**2) / jnp.maximum(rank, 1).astype(norms.dtype)),
        }[scale]
        return chosen * (found.inverse @ (found.vectors.T @ preferred(mask, norms.dtype)))

    return memoryless(num_tasks, weights_of)


def conflict_free(num_tasks: int, preference: Preference = None) -> Balancer:
    """ConFIG: the direction whose cosines to the tasks are equal, or in the ratio of a preference
    r: `x = pinv(U) r` with U the unit gradients, of length `sum_k <g_k, x/|x|>`. On the Gramian:
    `a = pinv(C) r`, C the cosines.

    Of dependent gradients the cosines are the nearest to those wanted, in the least squares sense.
    A task of zero gradient does not count.

    Paper: Liu, Chu & Thuerey, ICLR 2025.
    Cost: one eigendecomposition of size K.
    Use it: losses of one solution (physics residuals and boundary terms) that must all fall. Not:
    with more tasks than independent gradients, where equal cosines do not exist.

    Args:
        num_tasks: K.
        preference: r, one number or K of them; ones by default.
    """
    ratio = 1.0 if preference is None else preference
    preferred = preference_of(ratio, num_tasks, "conflict_free.preference")

    def weights_of(geometry: Geometry, mask: Array) -> Array:
        norms, cosines = geometry
        usable = mask & (norms > 0)
        a = solvers.pseudo_inverse_product(cosines, preferred(usable, norms.dtype), usable)
        products = cosines @ a
        squared = jnp.maximum(a @ products, 0)  # |x|^2
        longest = jnp.max(jnp.where(usable, norms, 0))
        share = norms / jnp.where(longest > 0, longest, 1)
        # sum_k <g_k, x> = sum_k |g_k| (C a)_k
        length = jnp.where(squared > 0, share @ products / jnp.where(squared > 0, squared, 1), 0)
        return solvers.divide(a * length, share)

    return memoryless(num_tasks, weights_of)


def krum(num_tasks: int, num_faulty: Natural = 0, num_selected: Count = 1) -> Balancer:
    """Krum: the mean of the gradients with the least sum of distances to their
    `n - num_faulty - 2` nearest neighbours (at least one neighbour).

    Paper: Blanchard et al., NeurIPS 2017.
    Cost: O(K^2 log K).
    Use it: some tasks' gradients may be corrupted. Not: for tasks that merely differ: it drops
    them.

    Args:
        num_tasks: K.
        num_faulty: how many gradients may be arbitrary.
        num_selected: how many are averaged.
    """
    if isinstance(num_selected, int) and num_selected > num_tasks:
        raise ConfigError(
            f"krum: num_faulty={num_faulty}, num_selected={num_selected} of {num_tasks} tasks"
        )

    def weights_of(geometry: Geometry, mask: Array) -> Array:
        norms, cosines = geometry
        longest = jnp.max(norms)
        share = norms / jnp.where(longest > 0, longest, 1)
        # ||a - b||^2 = (|a| - |b|)^2 + 2 |a| |b| (1 - cos)
        apart = 2 * share[:, None] * share[None, :] * (1 - cosines)
        distances = jnp.sqrt((share[:, None] - share[None, :]) ** 2 + apart)
        distances = jnp.where(mask[None, :], distances, jnp.inf)
        distances = jnp.where(jnp.eye(num_tasks, dtype=bool), 0, distances)
        neighbours = jnp.maximum(mask.sum() - num_faulty - 2, 1)
        near = jnp.arange(num_tasks) <= neighbours  # the first is the task itself
        nearest = jnp.sort(distances, axis=1)
        scores = jnp.sum(jnp.where(near & jnp.isfinite(nearest), nearest, 0), axis=1)
        rank = jnp.argsort(jnp.argsort(jnp.where(mask, scores, jnp.inf)))
        chosen = (rank < num_selected) & mask
        return solvers.uniform(chosen, norms.dtype)

    return memoryless(num_tasks, weights_of)
