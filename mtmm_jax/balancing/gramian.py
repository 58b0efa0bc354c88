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
    RandomState,
    Rule,
    random_init,
    random_next,
    stateless,
    task_vector,
)
from mtmm_jax.ranges import Count, Natural, NonNegative, Positive
from mtmm_jax.registry import ConfigError

Preference = NonNegative | Sequence[NonNegative] | None


def memoryless(num_tasks: int, weights_of: Callable[[Array, Array], Array]) -> Balancer:
    """A balancer whose weights are a function of the Gramian and the mask."""

    def weigh(state: tuple[()], evidence: Evidence) -> tuple[Array, tuple[()]]:
        return weights_of(evidence.gramian, evidence.present), state

    return Balancer(Rule("gramian", stateless, weigh), num_tasks)


def preference_of(
    preference: Preference, num_tasks: int, where: str
) -> Callable[[Array, jnp.dtype], Array]:
    """`(mask, dtype) -> ` the preferred weights: `1/K` over the present tasks unless given."""
    if preference is None:
        return solvers.uniform
    fixed = task_vector(preference, num_tasks, where)
    return lambda mask, dtype: mask.astype(dtype) * jnp.asarray(fixed, dtype)


def mgda(num_tasks: int) -> Balancer:
    """MGDA: the convex combination of least norm, `min_w w^T G w` over the simplex.

    Its negative descends on every task at once; it is zero exactly at Pareto stationary points.
    For the variants with normalised gradients (l2, loss, loss+) see `normalised`.

    Paper: Desideri 2012; Sener & Koltun, NeurIPS 2018.
    Cost: one quadratic program of size K (about 0.1 ms at K = 40), to full accuracy.
    Use it: when a Pareto stationary point itself is wanted. Not: with gradients of very different
    norms, where it follows the smallest.

    Args:
        num_tasks: K.
    """
    return memoryless(num_tasks, solvers.min_norm_point)


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
        return pcgrad_weights(evidence.gramian, evidence.present, orders), state

    return Balancer(Rule("gramian", random_init(seed), weigh), num_tasks)


def random_orders(key: Array, num_tasks: int) -> Array:
    """`[K, K]`, an independent random order of all tasks for each task.

    Drawn row by row, so that the orders of the first tasks do not depend on how many follow.
    """
    keys = jax.vmap(lambda task: jax.random.fold_in(key, task))(jnp.arange(num_tasks))
    return jnp.argsort(jax.vmap(lambda k: jax.random.uniform(k, (num_tasks,)))(keys), axis=1)


def pcgrad_weights(gramian: Array, present: Array, orders: Array) -> Array:
    """PCGrad's weights for given projection orders `[K, K]` (row i: the order for task i)."""
    tasks = jnp.arange(gramian.shape[0])
    squared = jnp.diagonal(gramian)
    usable = present & (squared > 0)
    inverse = jnp.where(usable, 1 / jnp.where(usable, squared, 1), 0)

    def project(carry: tuple[Array, Array], js: Array) -> tuple[tuple[Array, Array], None]:
        coefficients, products = carry  # a_i and G a_i, as rows
        along = jnp.take_along_axis(products, js[:, None], axis=1)[:, 0]
        step = jnp.where((js != tasks) & (along < 0), along * inverse[js], 0)
        chosen = js[:, None] == tasks[None, :]
        coefficients = coefficients - jnp.where(chosen, step[:, None], 0)
        return (coefficients, products - step[:, None] * gramian[js]), None

    start = jnp.diag(present.astype(gramian.dtype))
    (coefficients, _), _ = jax.lax.scan(project, (start, gramian), orders.T)
    return coefficients.sum(0)


def cagrad(
    num_tasks: int, c: NonNegative = 0.5, rescale: Literal["none", "1+c", "1+c2"] = "none"
) -> Balancer:
    """CAGrad: `max_d min_k <g_k, d>` within `||d - g_0|| <= c ||g_0||`, `g_0` the mean gradient:
    `w* = argmin over the simplex of w^T G 1/K + c ||g_0|| ||g_w||`,
    `v = g_0 + c ||g_0|| g_w / ||g_w||`.

    Paper: Liu et al., NeurIPS 2021.
    Cost: an interior point solve of size K (about 0.15 ms at K = 40).
    Use it: a good default where tasks conflict but their mean still matters (c < 1 converges to a
    minimum of the mean loss). Not: with c >= 1 that guarantee is gone.

    Args:
        num_tasks: K.
        c: the radius; 0 is the mean, large values approach MGDA's direction.
        rescale: `"none"`, `"1+c"` or `"1+c2"`: divide by `1 + c` or `1 + c^2`.
    """
    divisor = {"none": 1.0, "1+c": 1 + c, "1+c2": 1 + c**2}[rescale]

    def weights_of(gramian: Array, mask: Array) -> Array:
        mean = solvers.uniform(mask, gramian.dtype)
        radius = c * jnp.sqrt(jnp.maximum(mean @ gramian @ mean, 0))
        point = solvers.cagrad_point(gramian, radius, mask)
        squared = point @ gramian @ point
        floor = jnp.finfo(gramian.dtype).eps ** 2 * jnp.trace(gramian)
        length = jnp.where(squared > floor, radius * jax.lax.rsqrt(jnp.maximum(squared, floor)), 0)
        return (mean + jnp.where(squared > floor, length, 0) * point) / divisor

    if c == 0:
        return memoryless(num_tasks, lambda g, mask: solvers.uniform(mask, g.dtype))
    return memoryless(num_tasks, weights_of)


def nash(num_tasks: int, max_norm: NonNegative = 1.0) -> Balancer:
    """Nash-MTL: the Nash bargaining solution, `G a = 1/a` elementwise; `v = J^T a`.

    `||v||^2 = K` always; `max_norm` clips that. A task with zero gradient gets weight 0.

    Paper: Navon et al., ICML 2022.
    Cost: damped Newton, 5 to 15 Cholesky factorisations of size K (about 0.1 ms at K = 40).
    Use it: invariance to the losses' scales, proportional fairness. Not: close to a Pareto
    stationary point, where the weights grow without bound (the update keeps its length).

    Args:
        num_tasks: K.
        max_norm: upper bound on `||v||`; 0 for none.
    """

    def weights_of(gramian: Array, mask: Array) -> Array:
        weights = solvers.power_fixed_point(gramian, 1.0, mask)
        if max_norm <= 0:
            return weights
        norm = jnp.sqrt(jnp.maximum(weights @ gramian @ weights, 0))
        return weights * jnp.where(norm > max_norm, max_norm / jnp.where(norm > 0, norm, 1), 1)

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
    return memoryless(num_tasks, lambda g, m: solvers.power_fixed_point(g, float(alpha), m))


def _regularised(gramian: Array, mask: Array, reg: NonNegative) -> Array:
    """`G / trace(G) + reg I` over the tasks that count."""
    trace = jnp.trace(gramian)
    return gramian / jnp.where(trace > 0, trace, 1) + reg * jnp.diag(mask.astype(gramian.dtype))


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

    def weights_of(gramian: Array, mask: Array) -> Array:
        lower = jnp.diag(preferred(mask, gramian.dtype))
        return solvers.box_qp(_regularised(gramian, mask, reg), lower, mask).sum(0)

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

    def weights_of(gramian: Array, mask: Array) -> Array:
        lower = preferred(mask, gramian.dtype)[None, :]
        return solvers.box_qp(_regularised(gramian, mask, reg), lower, mask)[0]

    return memoryless(num_tasks, weights_of)


def imtl_g(num_tasks: int) -> Balancer:
    """IMTL-G: equal projections of the update on every task's direction, `<v, g_k> / ||g_k||` the
    same for all: `x = pinv(G) sqrt(diag G)`, `w = x / sum x`.

    Solved for unit gradients, `x = D^-1 pinv(C) 1` with C the cosines: the same answer, but sound
    in float32 when norms differ a thousandfold. Zero if `sum x` vanishes.

    Paper: Liu et al., ICLR 2021.
    Cost: one eigendecomposition of size K.
    Use it: tasks should advance alike whatever their losses' scales. Not: with strongly opposed
    tasks, where weights turn negative or huge.

    Args:
        num_tasks: K.
    """

    def weights_of(gramian: Array, mask: Array) -> Array:
        scale = solvers.inverse_scale(jnp.diagonal(gramian), mask)
        cosines = gramian * scale[:, None] * scale[None, :]
        largest = jnp.max(scale)  # so that nothing overflows at tiny gradients
        relative = scale / jnp.where(largest > 0, largest, 1)
        ones = (scale > 0).astype(gramian.dtype)
        x = relative * solvers.pseudo_inverse_product(cosines, ones, scale > 0)
        sums = x.sum()
        usable = jnp.abs(sums) > 10 * jnp.finfo(gramian.dtype).eps * jnp.abs(x).sum()
        return jnp.where(usable, x / jnp.where(usable, sums, 1), 0)

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

    def weights_of(gramian: Array, mask: Array) -> Array:
        trace = jnp.trace(gramian)
        values, vectors = jnp.linalg.eigh(gramian / jnp.where(trace > 0, trace, 1))
        kept = values > values[-1] * num_tasks * jnp.finfo(values.dtype).eps
        rank = kept.sum()
        first = num_tasks - rank  # values ascend: the kept ones are at the end
        chosen = {
            "min": values[first],
            "median": values[first + (rank - 1) // 2],
            "rmse": jnp.sum(jnp.where(kept, values, 0)) / jnp.maximum(rank, 1).astype(values.dtype),
        }[scale]
        inverse = jnp.where(kept, jax.lax.rsqrt(jnp.where(kept, values, 1)), 0)
        rotated = vectors.T @ preferred(mask, gramian.dtype)
        return jnp.sqrt(jnp.maximum(chosen, 0)) * (vectors @ (inverse * rotated))

    return memoryless(num_tasks, weights_of)


def conflict_free(num_tasks: int) -> Balancer:
    """ConFIG: the direction with equal positive cosines to all tasks, `x = pinv(U) 1` with U the
    unit gradients, of length `sum_k <g_k, x/|x|>`. On the Gramian: `a = pinv(C) 1`, C the cosines.

    Paper: Liu, Chu & Thuerey, ICLR 2025.
    Cost: one eigendecomposition of size K.
    Use it: losses of one solution (physics residuals and boundary terms) that must all fall. Not:
    with more tasks than independent gradients, where equal cosines do not exist.

    Args:
        num_tasks: K.
    """

    def weights_of(gramian: Array, mask: Array) -> Array:
        scale = solvers.inverse_scale(jnp.diagonal(gramian), mask)
        usable = scale > 0
        cosines = gramian * scale[:, None] * scale[None, :]
        a = solvers.pseudo_inverse_product(cosines, usable.astype(gramian.dtype), usable)
        squared = jnp.maximum(a @ cosines @ a, 0)  # |x|^2
        # sum_k <g_k, x> = sum_k |g_k| (C a)_k
        norms = jnp.where(usable, 1 / jnp.where(usable, scale, 1), 0)
        length = norms @ (cosines @ a)
        return a * scale * length / jnp.where(squared > 0, squared, 1)

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
    if num_selected > num_tasks:
        raise ConfigError(
            f"krum: num_faulty={num_faulty}, num_selected={num_selected} of {num_tasks} tasks"
        )

    def weights_of(gramian: Array, mask: Array) -> Array:
        squared = jnp.diagonal(gramian)
        distances = jnp.sqrt(jnp.maximum(squared[:, None] + squared[None, :] - 2 * gramian, 0))
        distances = jnp.where(mask[None, :], distances, jnp.inf)
        distances = jnp.where(jnp.eye(num_tasks, dtype=bool), 0, distances)
        neighbours = jnp.maximum(mask.sum() - num_faulty - 2, 1)
        near = jnp.arange(num_tasks) <= neighbours  # the first is the task itself
        nearest = jnp.sort(distances, axis=1)
        scores = jnp.sum(jnp.where(near & jnp.isfinite(nearest), nearest, 0), axis=1)
        rank = jnp.argsort(jnp.argsort(jnp.where(mask, scores, jnp.inf)))
        chosen = (rank < num_selected) & mask
        return solvers.uniform(chosen, gramian.dtype)

    return memoryless(num_tasks, weights_of)
