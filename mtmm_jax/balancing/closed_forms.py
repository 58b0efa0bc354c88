"""Gramian methods with an answer in closed form: an eigendecomposition or a sort, no iteration."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mtmm_jax.balancing import solvers
from mtmm_jax.balancing.core import Balancer
from mtmm_jax.balancing.gramian_rules import Preference, memoryless, preference_of
from mtmm_jax.balancing.rows import Array
from mtmm_jax.registry import ConfigError, choose


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


def aligned_mtl(num_tasks: int, scale: str = "min", preference: Preference = None) -> Balancer:
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
    choose(scale, ("min", "median", "rmse"), "aligned_mtl.scale")
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
        rotated = vectors.T @ preferred(mask.astype(gramian.dtype))
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


def krum(num_tasks: int, num_faulty: int = 0, num_selected: int = 1) -> Balancer:
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
    if num_faulty < 0 or not 1 <= num_selected <= num_tasks:
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
