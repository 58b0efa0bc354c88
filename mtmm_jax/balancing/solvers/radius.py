"""CAGrad's inner problem: the largest common progress within a ball around the mean gradient."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mtmm_jax.balancing.solvers.quadratic import min_norm_point, nonnegative_qp, solve_refined
from mtmm_jax.balancing.solvers.scaling import off_diagonal, ridge

Array = jax.Array


class _Level(NamedTuple):
    level: Array
    low: Array
    high: Array
    free: Array
    values: Array
    error: Array
    iteration: Array


def furthest_common_step(
    cosines: Array, norms: Array, center: Array, radius: float, mask: Array
) -> Array:
    """The y >= 0 `[K]` for which `d = e + U^T y` has the largest `min_k n_k <u_k, d>` among all d
    within `radius` of the unit vector e, `<u_k, e> = center_k`.

    The constraints `<u_k, d> >= t / n_k` at a level t are a nonnegative QP, whose solution is the
    nearest such d and depends on t piecewise linearly; its distance from e grows with t and is
    convex, so the level at which it equals the radius is found by the root of one piece after the
    other. Every step is a QP that starts with the free variables of the last one.

    Where zero is a convex combination of the gradients (a Pareto stationary point) no level above 0
    can be reached. The level is then the largest one up to 0 within the radius, and d the nearest
    point to e at that level: the projection of e onto the directions that conflict with nobody,
    if it lies in the ball.
    """
    dtype = cosines.dtype
    eps = float(jnp.finfo(dtype).eps)
    usable = mask & (norms > 0)
    matrix = off_diagonal(cosines, usable)
    shortest = jnp.min(jnp.where(usable, norms, jnp.inf))
    d = jnp.where(usable, shortest / jnp.where(usable, norms, 1), 0)
    p = jnp.where(usable, center, 0)
    hull = min_norm_point(cosines, norms, mask)
    stationary = hull.squared <= 16 * len(norms) * eps
    # Weak duality: no level is higher than what the point of least norm allows.
    top = jnp.where(stationary, 0, p @ hull.units + radius * jnp.sqrt(hull.squared))
    largest = jnp.asarray(jnp.finfo(dtype).max / 8, dtype)

    def solve(level: Array, guess: Array) -> tuple[Array, Array, Array]:
        linear = jnp.clip(p - level * d, -largest, largest)
        found = nonnegative_qp(matrix, linear[None, :], usable, guess)
        y = found.values[0]
        return y, found.free, jnp.sqrt(jnp.maximum(y @ (matrix @ y), 0))

    def root(free: Array) -> Array:
        """The level at which the piece of these free variables has the distance `radius`."""
        steepest = jnp.max(jnp.where(free, d, 0))
        slope = d / jnp.where(steepest > 0, steepest, 1)
        both = solve_refined(matrix, jnp.stack([-p, slope], 1), free, ridge(dtype))
        fixed, moving = both[:, 0], both[:, 1]
        a = jnp.sum(jnp.where(free, moving * slope, 0))
        b = -jnp.sum(jnp.where(free, moving * p, 0))
        c = -jnp.sum(jnp.where(free, fixed * p, 0)) - radius**2
        square = jnp.sqrt(jnp.maximum(b * b - a * c, 0))
        ahead = jnp.where(b > 0, -c / jnp.maximum(b + square, eps**2), (square - b) / a)
        return ahead / jnp.where(steepest > 0, steepest, 1)

    def step(carry: _Level) -> _Level:
        y, free, length = solve(carry.level, carry.free)
        error = jnp.abs(length - radius)
        better = error < carry.error
        low = jnp.where(length < radius, jnp.maximum(carry.low, carry.level), carry.low)
        high = jnp.where(length >= radius, jnp.minimum(carry.high, carry.level), carry.high)
        following = root(free[0])
        inside = (following >= low) & (following <= high)
        middle = jnp.where(low > -largest, (low + high) / 2, 2 * high - 1)
        following = jnp.where(inside & jnp.isfinite(following), following, middle)
        # Nothing is further: at a stationary point the ball may hold more than is needed.
        slack = (carry.iteration == 0) & stationary & (length <= radius)
        settled = jnp.abs(following - carry.level) <= 4 * eps * jnp.abs(carry.level)
        return _Level(
            level=jnp.clip(following, -largest, largest),
            low=low,
            high=high,
            free=free,
            values=jnp.where(better | slack, y, carry.values),
            error=jnp.where(slack | settled, 0, jnp.where(better, error, carry.error)),
            iteration=carry.iteration + 1,
        )

    def unfinished(carry: _Level) -> Array:
        return (carry.error > 4 * eps * radius) & (carry.iteration < 16 + 2 * len(norms))

    start = _Level(
        level=top.astype(dtype),
        low=-jnp.asarray(jnp.finfo(dtype).max, dtype),
        high=top.astype(dtype),
        free=(hull.units > 0)[None, :],
        values=jnp.zeros_like(d),
        error=jnp.asarray(jnp.inf, dtype),
        iteration=jnp.zeros((), jnp.int32),
    )
    y = jax.lax.while_loop(unfinished, step, start).values
    length = jnp.sqrt(jnp.maximum(y @ (matrix @ y), 0))
    return y * jnp.where(length > radius, radius / jnp.where(length > 0, length, 1), 1)
