"""Small solvers for K tasks: pure, inside jit, batched by vmap, bounded with early exit.

All take a mask of the tasks that count; the result is that of the problem with the other rows and
columns deleted, and 0 for them. Inputs are scaled to a unit diagonal first, which is what makes
float32 enough: task gradients whose norms differ a thousandfold do not lose the small ones.
Loops stop as soon as they have converged, so easy problems are cheap.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.linalg import cho_factor, cho_solve

Array = jax.Array


def _ridge(size: int, dtype: jnp.dtype) -> float:
    """The smallest multiple of I that keeps a singular unit-diagonal matrix factorisable."""
    return 4 * size * float(jnp.finfo(dtype).eps)


def inverse_scale(squared: Array, mask: Array) -> Array:
    """`1/sqrt(squared)` where the task counts and is not zero, else 0."""
    usable = mask & (squared > 0)
    return jnp.where(usable, jax.lax.rsqrt(jnp.where(usable, squared, 1)), 0)


def masked_sum(values: Array, mask: Array) -> Array:
    """Sum over the tasks that count."""
    return jnp.sum(jnp.where(mask, values, 0))


def task_count(mask: Array, dtype: jnp.dtype) -> Array:
    """How many tasks count, at least 1, as a float."""
    return jnp.maximum(mask.sum(), 1).astype(dtype)


def uniform(mask: Array, dtype: jnp.dtype) -> Array:
    """Equal weights of the tasks that count, summing to one."""
    return mask.astype(dtype) / task_count(mask, dtype)


def masked_softmax(values: Array, mask: Array) -> Array:
    """Softmax over the tasks that count, 0 for the others."""
    return jax.nn.softmax(jnp.where(mask, values, 0), where=mask)


class _Pivot(NamedTuple):
    free: Array
    solution: Array
    best: Array
    patience: Array
    iteration: Array
    done: Array


def nonnegative_qp(matrix: Array, linear: Array, mask: Array, max_iterations: int = 60) -> Array:
    """`argmin_{z >= 0} 1/2 z^T M z + q^T z` for positive semidefinite M, for many q at once.

    Accelerated projected gradient guesses which z are positive; block principal pivoting (Judice &
    Pires 1994) then makes the guess exact: solve for the free variables, move every variable of the
    wrong sign to the other side, and, should that stop improving, one variable at a time, which
    is finite.

    Args:
        matrix: `[K, K]`, positive semidefinite.
        linear: `[N, K]`, one problem per row; for a `M` zero diagonal entry it must be >= 0.
        mask: `[K]`, the variables that exist.
        max_iterations: bound on the pivoting steps.

    Returns:
        `[N, K]` solutions; 0 for variables that do not exist.
    """
    size, dtype = matrix.shape[0], matrix.dtype
    scale = inverse_scale(jnp.diagonal(matrix), mask)
    mask = mask & (scale > 0)
    matrix = matrix * scale[:, None] * scale[None, :]
    matrix = jnp.where(mask[:, None] & mask[None, :], matrix, 0)
    matrix = matrix + jnp.diag(jnp.where(mask, _ridge(size, dtype), 1).astype(dtype))
    linear = jnp.where(mask, linear * scale, 0)
    largest = jnp.max(jnp.abs(linear), axis=1, keepdims=True)
    linear = linear / jnp.where(largest > 0, largest, 1)
    tolerance = 100 * jnp.finfo(dtype).eps
    solve = jax.vmap(lambda free, q: _solve_free(matrix, q, free))

    def step(carry: _Pivot) -> _Pivot:
        solution = solve(carry.free, linear)
        slack = solution @ matrix + linear
        size_of = jnp.max(jnp.abs(solution), axis=1, keepdims=True)
        wrong = mask & jnp.where(
            carry.free, solution < -tolerance * size_of, slack < -tolerance * (1 + size_of)
        )
        count = wrong.sum(1, dtype=jnp.int32)
        better = count < carry.best
        patience = jnp.where(better, 3, carry.patience - 1)
        last = (jnp.arange(size) == size - 1 - jnp.argmax(wrong[:, ::-1], axis=1)[:, None]) & wrong
        flip = jnp.where((patience >= 0)[:, None], wrong, last)
        return _Pivot(
            free=carry.free ^ flip,
            solution=jnp.where(better[:, None], solution, carry.solution),
            best=jnp.minimum(count, carry.best),
            patience=patience,
            iteration=carry.iteration + 1,
            done=(jnp.minimum(count, carry.best) == 0),
        )

    def unfinished(carry: _Pivot) -> Array:
        return ~carry.done.all() & (carry.iteration < max_iterations)

    rows = linear.shape[0]
    start = _Pivot(
        free=_guess_free(matrix, linear) & mask,
        solution=jnp.zeros_like(linear),
        best=jnp.full((rows,), size + 1, jnp.int32),
        patience=jnp.full((rows,), 3, jnp.int32),
        iteration=jnp.zeros((), jnp.int32),
        done=jnp.zeros((rows,), bool),
    )
    final = jax.lax.while_loop(unfinished, step, start)
    return jnp.maximum(final.solution, 0) * jnp.where(largest > 0, largest, 1) * scale


def _solve_free(matrix: Array, linear: Array, free: Array) -> Array:
    """The unconstrained minimum over the free variables, the others at zero."""
    identity = jnp.eye(matrix.shape[0], dtype=matrix.dtype)
    system = jnp.where(free[:, None] & free[None, :], matrix, identity)
    return jnp.where(free, cho_solve(cho_factor(system), jnp.where(free, -linear, 0)), 0)


def _guess_free(matrix: Array, linear: Array, iterations: int = 60) -> Array:
    """Which variables are positive after some accelerated projected gradient steps."""
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


def min_norm_point(gramian: Array, mask: Array) -> Array:
    """`argmin_w w^T G w` over the simplex: the convex combination of least norm.

    `min_{z >= 0} 1/2 z^T (G + 1 1^T) z - 1^T z` has the solution `z = w / (1 + w^T G w)`, so a
    nonnegative QP and a division are enough, also where the least norm is zero.
    """
    squared = jnp.diagonal(gramian)
    smallest = jnp.min(jnp.where(mask & (squared > 0), squared, jnp.inf))  # bounds the answer
    scaled = gramian / jnp.where(jnp.isfinite(smallest), smallest, 1)
    ones = mask.astype(gramian.dtype)
    z = nonnegative_qp(scaled + ones[:, None] * ones[None, :], -ones[None, :], mask)[0]
    sums = z.sum()
    return jnp.where(sums > 0, z / jnp.where(sums > 0, sums, 1), 0)


def box_qp(gramian: Array, lower: Array, mask: Array) -> Array:
    """`argmin_{v >= u} v^T G v` for every row u of `lower` `[N, K]`, nonnegative."""
    lower = jnp.where(mask, lower, 0)
    return lower + nonnegative_qp(gramian, lower @ gramian, mask)


def project_simplex(values: Array, mask: Array) -> Array:
    """The nearest point of the simplex over the tasks that count."""
    size = values.shape[0]
    lowest = jnp.min(jnp.where(mask, values, jnp.inf))
    sorted_values = jnp.sort(jnp.where(mask, values, lowest - 2))[::-1]  # the others drop out
    sums = jnp.cumsum(sorted_values)
    ranks = jnp.arange(1, size + 1, dtype=values.dtype)
    above = sorted_values * ranks > sums - 1
    count = jnp.max(jnp.where(above, ranks, 1))
    shift = (jnp.sum(jnp.where(ranks <= count, sorted_values, 0)) - 1) / count
    return jnp.where(mask, jnp.maximum(values - shift, 0), 0)


class _Interior(NamedTuple):
    weights: Array
    slack: Array
    level: Array
    gap: Array
    iteration: Array


def cagrad_point(gramian: Array, radius: Array, mask: Array, max_iterations: int = 40) -> Array:
    """`argmin_w b^T w + radius sqrt(w^T G w)` over the simplex, with `b = G 1/K`.

    A primal-dual interior point method: each step is one Cholesky factorisation of
    `Hessian + diag(slack / w)` and two back substitutions; it stops when the gap
    `w^T slack / K` is at rounding level.
    """
    size, dtype = gramian.shape[0], gramian.dtype
    count = task_count(mask, dtype)
    ones = mask.astype(dtype)
    mean = jnp.trace(gramian) / count
    scale = jnp.where(mean > 0, mean, 1)
    gramian = gramian / scale
    radius = radius / jnp.sqrt(scale)
    base = gramian @ ones / count
    tiny = jnp.finfo(dtype).eps
    size_of_problem = jnp.max(jnp.abs(base)) + radius + tiny

    def slope(weights: Array) -> tuple[Array, Array, Array]:
        product = gramian @ weights
        norm = jnp.sqrt(jnp.maximum(weights @ product, tiny**2))
        return base + radius * product / norm, product, norm

    def step(carry: _Interior) -> _Interior:
        gradient, product, norm = slope(carry.weights)
        ratio = jnp.where(mask, carry.slack / jnp.where(mask, carry.weights, 1), 1)
        hessian = radius * (gramian / norm - product[:, None] * product[None, :] / norm**3)
        hessian = hessian + jnp.diag(ratio + _ridge(size, dtype) * radius / norm)
        target = 0.1 * carry.gap
        right = -(gradient - carry.level) + jnp.where(
            mask, target / jnp.where(mask, carry.weights, 1), 0
        )
        both = cho_solve(cho_factor(hessian), jnp.stack([jnp.where(mask, right, 0), ones], 1))
        shift = -(both[:, 0].sum() + carry.weights.sum() - 1) / both[:, 1].sum()
        move = jnp.where(mask, both[:, 0] + shift * both[:, 1], 0)
        slack_move = jnp.where(
            mask, (target / jnp.where(mask, carry.weights, 1)) - carry.slack - ratio * move, 0
        )
        length = 0.995 * jnp.minimum(
            _longest(carry.weights, move, mask), _longest(carry.slack, slack_move, mask)
        )
        length = jnp.minimum(length, 1)
        weights = carry.weights + length * move
        slack = carry.slack + length * slack_move
        level = carry.level + length * shift
        return _Interior(
            weights, slack, level, masked_sum(weights * slack, mask) / count, carry.iteration + 1
        )

    def unfinished(carry: _Interior) -> Array:
        tolerance = 4 * tiny * size_of_problem / count
        return (carry.gap > tolerance) & (carry.iteration < max_iterations)

    weights = ones / count
    gradient, _, _ = slope(weights)
    level = jnp.min(jnp.where(mask, gradient, jnp.inf)) - size_of_problem
    slack = jnp.where(mask, gradient - level, 0)
    start = _Interior(
        weights, slack, level, masked_sum(weights * slack, mask) / count, jnp.zeros((), jnp.int32)
    )
    final = jax.lax.while_loop(unfinished, step, start).weights
    return jnp.where(mask, final, 0) / jnp.maximum(final.sum(), tiny)


def _longest(values: Array, move: Array, mask: Array) -> Array:
    """How far one may go along `move` before a value turns negative."""
    shrinking = mask & (move < 0)
    return jnp.min(jnp.where(shrinking, -values / jnp.where(shrinking, move, 1), jnp.inf))


class _Newton(NamedTuple):
    point: Array
    residual: Array
    iteration: Array
    stuck: Array


def power_fixed_point(gramian: Array, alpha: float, mask: Array, max_iterations: int = 60) -> Array:
    """The w > 0 with `(G w)_k = w_k^(-1/alpha)`: FairGrad's fixed point; alpha = 1 is Nash's.

    It minimises the convex `1/2 w^T G w - sum_k phi(w_k)`, `phi' = w^(-1/alpha)`. Newton steps in
    units in which G has a constant diagonal, with the best of several step lengths, down to a
    relative residual at rounding level. A task of zero gradient has no finite w and gets 0; opposed
    gradients with nothing else to go by get a large but finite one.
    """
    size, dtype = gramian.shape[0], gramian.dtype
    squared = jnp.diagonal(gramian)
    mask = mask & (squared > 0)
    safe = jnp.where(mask, squared, 1)
    unit = safe ** (-alpha / (1 + alpha))  # the answer if gradients were orthogonal
    # With w = unit * y: y_k-th equation divided by unit^(-1/alpha).
    scale = inverse_scale(squared, mask)
    correlation = gramian * scale[:, None] * scale[None, :]
    correlation = jnp.where(mask[:, None] & mask[None, :], correlation, jnp.eye(size, dtype=dtype))
    ratio = jnp.sqrt(safe) * unit  # G_ij unit_j / unit_i^(-1/alpha) = C_ij ratio_j / ratio_i
    weight = jnp.where(mask, ratio**2, 1)
    weight = weight / jnp.max(jnp.where(mask, weight, 0))
    weight = jnp.where(mask, weight, 1)
    ratio = jnp.sqrt(weight)
    # Opposed gradients alone have no finite w; the ridge bounds it, at rounding level elsewhere.
    correlation = correlation + float(jnp.finfo(dtype).eps) * jnp.eye(size, dtype=dtype)
    matrix = correlation * ratio[:, None] * ratio[None, :]
    power = 1 / alpha
    lengths = jnp.asarray([1, 0.5, 0.25, 0.1, 0.03, 0.01, 0.001], dtype)
    tiny = jnp.finfo(dtype).eps

    def objective(point: Array) -> Array:
        safe_point = jnp.maximum(point, tiny**2)
        barrier = jnp.log(safe_point) if alpha == 1 else safe_point ** (1 - power) / (1 - power)
        return 0.5 * point @ (matrix @ point) - jnp.sum(weight * barrier)

    def relative_residual(point: Array) -> Array:
        return jnp.max(jnp.abs((matrix @ point) / (weight * point**-power) - 1))

    def step(carry: _Newton) -> _Newton:
        point = carry.point
        gradient = matrix @ point - weight * point**-power
        hessian = matrix + jnp.diag(power * weight * point ** (-power - 1))
        move = -cho_solve(cho_factor(hessian), gradient)
        limit = jnp.minimum(1, 0.95 * _longest(point, move, jnp.ones_like(mask)))
        trials = point + (lengths * limit)[:, None] * move
        values = jax.vmap(objective)(trials)
        chosen = trials[jnp.argmin(jnp.where(jnp.isfinite(values), values, jnp.inf))]
        # Close to the end the objective is flat to rounding: follow the residual instead.
        full = relative_residual(trials[0])
        chosen = jnp.where(full < 0.1, trials[0], chosen)
        residual = relative_residual(chosen)
        stuck = (residual >= carry.residual) & (carry.residual < 1e-2)
        # Of opposed gradients the Hessian may be indefinite to rounding: no move, and no NaN.
        stuck = stuck | ~jnp.all(jnp.isfinite(move))
        return _Newton(
            jnp.where(stuck, point, chosen),
            jnp.where(stuck, carry.residual, residual),
            carry.iteration + 1,
            stuck,
        )

    def unfinished(carry: _Newton) -> Array:
        return (carry.residual > 8 * tiny) & (carry.iteration < max_iterations) & ~carry.stuck

    ones = jnp.ones((size,), dtype)
    start = _Newton(ones, relative_residual(ones), jnp.zeros((), jnp.int32), jnp.zeros((), bool))
    return jnp.where(mask, unit * jax.lax.while_loop(unfinished, step, start).point, 0)


def pseudo_inverse_product(matrix: Array, right: Array, mask: Array) -> Array:
    """`pinv(matrix) @ right` for a symmetric matrix of about unit diagonal."""
    size, dtype = matrix.shape[0], matrix.dtype
    masked = jnp.where(mask[:, None] & mask[None, :], matrix, 0)
    values, vectors = jnp.linalg.eigh(masked)
    kept = values > values[-1] * size * jnp.finfo(dtype).eps
    inverse = jnp.where(kept, 1 / jnp.where(kept, values, 1), 0)
    return vectors @ (inverse * (vectors.T @ jnp.where(mask, right, 0)))
