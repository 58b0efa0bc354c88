"""Nonnegative quadratic programs, to full accuracy: MGDA, UPGrad, DualProj and PCD are ones."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mtmm_jax.balancing.base import divide
from mtmm_jax.balancing.solvers import lapack
from mtmm_jax.balancing.solvers.scaling import off_diagonal, ridge, uniform

Array = jax.Array


class QuadraticSolution(NamedTuple):
    """Minimisers `[N, K]`, and which of their entries are free to be positive."""

    values: Array
    free: Array


class _Pivot(NamedTuple):
    free: Array
    best_free: Array
    best: Array
    patience: Array
    ridge: Array
    iteration: Array


def nonnegative_qp(
    matrix: Array,
    linear: Array,
    mask: Array,
    free: Array | None = None,
    max_iterations: int = 20,
) -> QuadraticSolution:
    """`argmin_{z >= 0} 1/2 z^T M z + q^T z` for positive semidefinite M, for many q at once.

    Accelerated projected gradient guesses which z are positive; block principal pivoting (Judice &
    Pires 1994) then makes the guess exact: solve for the free variables, move every variable of the
    wrong sign to the other side, and, should that stop improving, one variable at a time. A
    factorisation that fails is repeated with a larger ridge. Problems that this does not settle,
    such as those of many dependent rows, go to Lawson & Hanson's active set method, slower and
    certain, whose free variables stay independent. Solutions are refined without the ridge.

    Args:
        matrix: `[K, K]`, positive semidefinite, of unit diagonal.
        linear: `[N, K]`, one problem per row.
        mask: `[K]`, the variables that exist.
        free: `[N, K]`, a guess of the positive variables in place of the gradient steps.
        max_iterations: bound on the pivoting steps.

    Returns:
        The solutions; 0 for variables that do not exist. A problem without a minimum (M singular,
        q outside its range) has a finite result that violates its conditions.
    """
    size, dtype = matrix.shape[0], matrix.dtype
    matrix = off_diagonal(matrix, mask)
    linear = jnp.where(mask, linear, 0)
    # In the unit of what pulls away from zero: entries far above 0 would hide the others.
    largest = jnp.max(-linear, axis=1, keepdims=True)
    largest = jnp.where(largest > 0, largest, 1)
    most = 1 / float(jnp.finfo(dtype).eps)
    linear = jnp.clip(linear / largest, -1, most)
    tolerance = 100 * jnp.finfo(dtype).eps

    def solve(right: Array, free: Array, added: Array, steps: int) -> Array:
        return jax.vmap(lambda b, f, a: solve_refined(matrix, b, f, a, steps))(right, free, added)

    def step(carry: _Pivot) -> _Pivot:
        z = solve(-linear, carry.free, carry.ridge, 0)
        failed = ~jnp.isfinite(z).all(1)
        slack = jnp.matmul(z, matrix, precision=jax.lax.Precision.HIGHEST) + linear
        size_of = jnp.max(jnp.abs(z), axis=1, keepdims=True)
        wrong = mask & jnp.where(
            carry.free, z < -tolerance * size_of, slack < -tolerance * (1 + size_of)
        )
        count = jnp.where(failed, size + 1, wrong.sum(1, dtype=jnp.int32))
        better = count < carry.best
        patience = jnp.where(failed, carry.patience, carry.patience - 1)
        patience = jnp.where(better, 3, patience)
        last = (jnp.arange(size) == size - 1 - jnp.argmax(wrong[:, ::-1], axis=1)[:, None]) & wrong
        flip = jnp.where((patience >= 0)[:, None], wrong, last) & ~failed[:, None]
        return _Pivot(
            free=carry.free ^ flip,
            best_free=jnp.where(better[:, None], carry.free, carry.best_free),
            best=jnp.minimum(count, carry.best),
            patience=patience,
            ridge=jnp.where(failed, 16 * carry.ridge, carry.ridge),
            iteration=carry.iteration + 1,
        )

    def unfinished(carry: _Pivot) -> Array:
        return (carry.best > 0).any() & (carry.iteration < max_iterations)

    rows = linear.shape[0]
    guess = _guess_free(matrix, linear) if free is None else free
    start = _Pivot(
        free=guess & mask,
        best_free=jnp.zeros((rows, size), bool),
        best=jnp.full((rows,), size + 1, jnp.int32),
        patience=jnp.full((rows,), 3, jnp.int32),
        ridge=jnp.full((rows,), ridge(dtype), dtype),
        iteration=jnp.zeros((), jnp.int32),
    )
    final = jax.lax.while_loop(unfinished, step, start)
    exact = solve(-linear, final.best_free, final.ridge, 2)
    settled = (final.best == 0) & jnp.isfinite(exact).all(1)
    exact = jnp.where(settled[:, None], jnp.maximum(exact, 0), 0)
    values, kept = _one_by_one(matrix, linear, mask, settled, exact, final.best_free)
    return QuadraticSolution(values * largest, kept)


class _ActiveSet(NamedTuple):
    values: Array
    free: Array
    added: Array
    adding: Array
    done: Array
    iteration: Array


def _one_by_one(
    matrix: Array, linear: Array, mask: Array, settled: Array, values: Array, free: Array
) -> tuple[Array, Array]:
    """Lawson & Hanson's method, from zero, for the rows that are not settled."""
    size, dtype = matrix.shape[0], matrix.dtype
    eps = float(jnp.finfo(dtype).eps)

    def one(carry: _ActiveSet, q: Array) -> _ActiveSet:
        x = carry.values
        slope = -(jnp.matmul(matrix, x, precision=jax.lax.Precision.HIGHEST) + q)
        gain = jnp.where(mask & ~carry.free, slope, -jnp.inf)
        best = jnp.argmax(gain).astype(jnp.int32)
        places = jnp.arange(size, dtype=jnp.int32)
        enough = gain[best] > 16 * size**0.5 * eps * (1 + jnp.sum(x))
        stop = carry.done | (carry.adding & ~enough)
        free = carry.free | (carry.adding & (places == best))
        added = jnp.where(carry.adding, best, carry.added)
        trial = solve_refined(matrix, -q, free, ridge(dtype), 2)
        negative = free & (trial <= 0)
        stop = stop | ~jnp.isfinite(trial).all() | (negative[added] & (x[added] <= 0))
        ratio = jnp.where(negative, x / jnp.where(negative, x - trial, 1), jnp.inf)
        length = jnp.minimum(jnp.min(ratio), 1)
        moved = jnp.where(free, jnp.maximum(x + length * (trial - x), 0), 0)
        leaving = negative & (ratio <= length * (1 + 4 * eps))
        moved = jnp.where(leaving, 0, moved)
        keep = stop | carry.done
        return _ActiveSet(
            values=jnp.where(keep, x, moved),
            free=jnp.where(keep, carry.free, free & ~leaving),
            added=added,
            adding=~negative.any(),
            done=keep,
            iteration=carry.iteration + 1,
        )

    def step(carry: _ActiveSet) -> _ActiveSet:
        return jax.vmap(one)(carry, linear)

    def unfinished(carry: _ActiveSet) -> Array:
        return ~carry.done.all() & (carry.iteration.max() < 4 * size)

    rows = len(linear)
    start = _ActiveSet(
        values=values,
        free=free & settled[:, None],
        added=jnp.zeros((rows,), jnp.int32),
        adding=jnp.ones((rows,), bool),
        done=settled,
        iteration=jnp.zeros((rows,), jnp.int32),
    )
    final = jax.lax.while_loop(unfinished, step, start)
    return final.values, final.free


def _masked_factor(matrix: Array, free: Array, added: Array) -> Array:
    identity = jnp.eye(matrix.shape[0], dtype=matrix.dtype)
    system = jnp.where(free[:, None] & free[None, :], matrix, identity)
    return lapack.cholesky(system + added * identity)


def solve_refined(
    matrix: Array, right: Array, free: Array, added: float | Array, steps: int = 3
) -> Array:
    """`M_FF x_F = right_F`, 0 elsewhere: Cholesky with a ridge, refined without it.

    Args:
        matrix: `[K, K]` of about unit diagonal.
        right: `[K]` or `[K, N]`.
        free: `[K]`, the rows and columns that count.
        added: the ridge.
        steps: of refinement; each divides what the ridge left by `eigenvalue / ridge`.
    """
    keep = free if right.ndim == 1 else free[:, None]
    factor = _masked_factor(matrix, free, jnp.asarray(added, matrix.dtype))
    right = jnp.where(keep, right, 0)

    def solve(b: Array) -> Array:
        return jnp.where(keep, lapack.solve_factored(factor, b), 0)

    x = solve(right)
    for _ in range(steps):
        residual = right - jnp.matmul(matrix, x, precision=jax.lax.Precision.HIGHEST)
        x = x + solve(jnp.where(keep, residual, 0))
    return x


def _guess_free(matrix: Array, linear: Array, iterations: int = 60) -> Array:
    """The variables that are positive after some accelerated projected gradient steps."""
    # The largest absolute row sum bounds the largest eigenvalue.
    step = 1 / jnp.max(jnp.sum(jnp.abs(matrix), axis=1))

    def advance(_: int, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        old, ahead, momentum = carry
        new = jnp.maximum(ahead - step * (ahead @ matrix + linear), 0)
        following = (1 + jnp.sqrt(1 + 4 * momentum**2)) / 2
        return new, new + (momentum - 1) / following * (new - old), following

    zero = jnp.zeros_like(linear)
    one = jnp.ones((), matrix.dtype)
    return jax.lax.fori_loop(0, iterations, advance, (zero, zero, one))[0] > 0


class MinimumNorm(NamedTuple):
    """The convex combination of least norm.

    Attributes:
        weights: `[K]`, on the simplex.
        units: `[K]`, the same point divided by the least norm of a row, in unit vectors.
        squared: its squared norm over that of the shortest row, 0 to 1.
    """

    weights: Array
    units: Array
    squared: Array


def min_norm_point(cosines: Array, norms: Array, mask: Array) -> MinimumNorm:
    """`argmin_w ||sum_k w_k g_k||` over the simplex.

    In unit vectors, `w_k = d_k y_k` with `d_k = min_j n_j / n_k`, the norm is `n y^T C y` and the
    simplex `d^T y = 1`: `min_{z >= 0} 1/2 z^T (C + d d^T) z - d^T z` has the solution
    `z = y / (1 + y^T C y)`, so a nonnegative QP and a division are enough, at any ratio of norms
    and also where the least norm is zero. Rows of norm zero are that point themselves.
    """
    zero = mask & ~(norms > 0)
    usable = mask & (norms > 0)
    shortest = jnp.min(jnp.where(usable, norms, jnp.inf))
    d = jnp.where(usable, shortest / jnp.where(usable, norms, 1), 0)
    raised = jnp.where(usable, jax.lax.rsqrt(1 + d**2), 0)
    system = (off_diagonal(cosines, usable) + d[:, None] * d[None, :]) * jnp.outer(raised, raised)
    z = nonnegative_qp(system, -(d * raised)[None, :], usable).values[0] * raised
    sums = d @ z  # 1 / (1 + y^T C y)
    units = z / jnp.where(sums > 0, sums, 1)
    squared = jnp.clip(units @ (off_diagonal(cosines, usable) @ units), 0, 1)
    weights = d * units / jnp.maximum(d @ units, jnp.finfo(d.dtype).tiny)
    weights = jnp.where(zero.any(), uniform(zero, d.dtype), weights)
    return MinimumNorm(weights.astype(d.dtype), units, jnp.where(zero.any(), 0, squared))


def cone_projections(cosines: Array, norms: Array, lower: Array, reg: float, mask: Array) -> Array:
    """`argmin_{v >= u} v^T (G / trace(G) + reg I) v` for every row u of `lower` `[N, K]`.

    In units in which the matrix has a unit diagonal, `v_k = y_k / s_k` with
    `s_k^2 = n_k^2 / trace + reg`. A zero gradient keeps `v_k = u_k`.
    """
    usable = mask & (norms > 0)
    largest = jnp.max(jnp.where(usable, norms, 0))
    relative = jnp.where(usable, norms / jnp.where(largest > 0, largest, 1), 0)
    root = jnp.sqrt(jnp.sum(relative**2))
    relative = relative / jnp.where(root > 0, root, 1)
    scale = jnp.where(usable, jnp.hypot(relative, jnp.sqrt(jnp.asarray(reg, norms.dtype))), 1)
    share = jnp.where(usable, relative / scale, 0)
    system = off_diagonal(cosines * share[:, None] * share[None, :], usable)
    raised = jnp.where(usable, lower * scale, 0)
    # Each problem in its own unit, or a small task's would be lost among the others'.
    unit = jnp.max(jnp.abs(raised), axis=1, keepdims=True)
    raised = raised / jnp.where(unit > 0, unit, 1)
    linear = jnp.matmul(raised, system, precision=jax.lax.Precision.HIGHEST)
    z = nonnegative_qp(system, linear, usable).values
    more = jax.vmap(divide, (0, None))(z * unit, jnp.where(usable, scale, 0))
    return jnp.where(mask, lower, 0) + more
