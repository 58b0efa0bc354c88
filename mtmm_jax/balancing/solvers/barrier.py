"""Nash's and FairGrad's fixed points: damped Newton on a convex barrier problem."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mtmm_jax.balancing.solvers import lapack
from mtmm_jax.balancing.solvers.scaling import off_diagonal, ridge

Array = jax.Array


class _Newton(NamedTuple):
    point: Array
    decrement: Array
    iteration: Array
    stuck: Array


def power_fixed_point(
    cosines: Array, norms: Array, alpha: float, mask: Array, max_iterations: int = 60
) -> Array:
    """The w > 0 with `(G w)_k = w_k^(-1/alpha)`: FairGrad's fixed point; alpha = 1 is Nash's.

    It minimises the convex `1/2 w^T G w - sum_k phi(w_k)`, `phi' = w^(-1/alpha)`. In unit vectors,
    `s_k = n_k w_k = S_k t_k` with S the solution for orthogonal gradients, the conditions are
    `(C s)_k = S_k t_k^(-1/alpha)` and a Newton step solves `(C + diag(t^(-1-1/alpha)) / alpha)`,
    whatever the norms are. It stops where the decrement is at rounding level.

    A task of zero gradient has no finite w and gets 0. At a Pareto stationary point there is no
    solution: w grows along a combination that vanishes until rounding hides it, and the update
    `J^T w` is zero up to the square root of the dtype's precision.
    """
    size, dtype = len(norms), cosines.dtype
    eps = float(jnp.finfo(dtype).eps)
    mask = mask & (norms > 0)
    matrix = off_diagonal(cosines, mask)
    largest = jnp.max(jnp.where(mask, norms, 0))
    relative = jnp.where(mask, norms / jnp.where(largest > 0, largest, 1), 1)
    power = 1 / alpha
    # Orthogonal gradients: w = n^(-2 alpha / (1 + alpha)), s = n w.
    unit = relative ** ((1 - alpha) / (1 + alpha))
    unit = jnp.clip(unit, jnp.finfo(dtype).tiny * 2**20, jnp.finfo(dtype).max / 2**20)
    # In shares of the largest, so that squares and sums stay in range.
    top = jnp.max(jnp.where(mask, unit, 0))
    unit = jnp.where(mask, unit / jnp.where(top > 0, top, 1), 1)
    lengths = jnp.asarray([1, 0.5, 0.25, 0.1, 0.03, 0.01, 0.001], dtype)
    longest = 1 / (4 * size * eps) ** 0.5

    def barrier(t: Array) -> Array:
        t = jnp.maximum(t, jnp.finfo(dtype).tiny)
        rest = 1 - jnp.asarray(power, dtype)  # alpha may be an array
        near = jnp.abs(rest) < 1e-3
        safe = jnp.where(near, 1, rest)
        return jnp.where(near, jnp.log(t) * (1 + rest * jnp.log(t) / 2), (t**safe - 1) / safe)

    def objective(t: Array) -> Array:
        s = unit * t
        return 0.5 * s @ (matrix @ s) - jnp.sum(jnp.where(mask, unit**2 * barrier(t), 0))

    def step(carry: _Newton) -> _Newton:
        t = carry.point
        pull = t**-power
        slope = matrix @ (unit * t) - unit * pull
        curvature = jnp.where(mask, jnp.minimum(power * pull / t, 1 / eps**2), 1)
        hessian = matrix + jnp.diag(curvature + ridge(dtype))
        factor = lapack.cholesky(hessian)
        move = -lapack.solve_factored(factor, jnp.where(mask, slope, 0))
        decrement = jnp.sqrt(jnp.maximum(-(slope @ move), 0))
        move = jnp.where(mask, move / unit, 0)
        shrinking = move < 0
        room = jnp.min(jnp.where(shrinking, -t / jnp.where(shrinking, move, 1), jnp.inf))
        limit = jnp.minimum(1, 0.95 * room)
        trials = t + (lengths * limit)[:, None] * move
        values = jax.vmap(objective)(trials)
        chosen = trials[jnp.argmin(jnp.where(jnp.isfinite(values), values, jnp.inf))]
        # Close to the end the objective is flat to rounding: take the full step.
        scale = jnp.sqrt(jnp.maximum((unit * t) @ (matrix @ (unit * t)), eps))
        close = decrement < 0.05 * jnp.minimum(scale, 1)
        chosen = jnp.where(close, trials[0], chosen)
        bounded = jnp.max(jnp.abs(chosen)) < longest
        stuck = ~jnp.isfinite(chosen).all() | ~jnp.isfinite(decrement)
        stuck = stuck | (close & (decrement >= carry.decrement) & (decrement < 1e-3 * scale))
        return _Newton(
            jnp.where(stuck, t, chosen),
            jnp.where(stuck, carry.decrement, decrement),
            carry.iteration + 1,
            stuck | ~bounded,
        )

    def unfinished(carry: _Newton) -> Array:
        more = (carry.decrement > 2 * eps) & (carry.iteration < max_iterations)
        return more & ~carry.stuck

    start = _Newton(
        jnp.ones((size,), dtype),
        jnp.asarray(jnp.inf, dtype),
        jnp.zeros((), jnp.int32),
        jnp.zeros((), bool),
    )
    t = jax.lax.while_loop(unfinished, step, start).point
    # Back from shares: with n = largest * relative, w = largest^(-2 alpha / (1 + alpha)) ...
    factor = relative ** (-2 * alpha / (1 + alpha))
    weights = jnp.where(mask, jnp.minimum(factor, jnp.finfo(dtype).max / 4) * t, 0)
    whole = jnp.where(largest > 0, largest, 1) ** (-2 * alpha / (1 + alpha))
    finite = float(jnp.finfo(dtype).max) / 4
    return jnp.clip(jnp.where(mask, weights * whole, 0), 0, finite)
