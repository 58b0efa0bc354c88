"""Pseudo-inverses and eigenvalues of Gramians, also of gradients of very different norms."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mtmm_jax.balancing.solvers import lapack
from mtmm_jax.balancing.solvers.scaling import off_diagonal, rank_tolerance

Array = jax.Array


def pseudo_inverse_product(cosines: Array, right: Array, mask: Array, steps: int = 2) -> Array:
    """`pinv(C) @ right` for a matrix of unit diagonal, refined.

    Eigenvalues below `scaling.rank_tolerance` of the largest belong to dependent rows.
    """
    size, dtype = cosines.shape[0], cosines.dtype
    matrix = off_diagonal(cosines, mask)
    # The identity of the tasks that do not count must not be the largest eigenvalue.
    matrix = jnp.where(mask[:, None] & mask[None, :], matrix, 0)
    values, vectors = lapack.eigh(matrix)
    kept = values > values[-1] * rank_tolerance(size, dtype)
    inverse = jnp.where(kept, 1 / jnp.where(kept, values, 1), 0)

    def solve(b: Array) -> Array:
        return vectors @ (inverse * (vectors.T @ b))

    right = jnp.where(mask, right, 0)
    x = solve(right)
    for _ in range(steps):
        x = x + solve(_residual(matrix, x, right))
    return jnp.where(mask, x, 0)


def _residual(matrix: Array, x: Array, right: Array) -> Array:
    """`right - matrix @ x`, as if in twice the precision: a residual of rounded sums would be
    that of another matrix (Ogita, Rump & Oishi 2005).

    Factors are split in two halves whose products are exact; sums carry what rounding drops.
    """

    def add(total: tuple[Array, Array], y: Array) -> tuple[Array, Array]:
        high, low = total
        new = high + y
        back = new - high
        return new, low + ((high - (new - back)) + (y - back))

    def column(total: tuple[Array, Array], entry: tuple[Array, Array]) -> tuple[Any, None]:
        products = [-a * b for a in _halves(entry[0]) for b in _halves(entry[1])]
        for product in products:
            total = add(total, product)
        return total, None

    (high, low), _ = jax.lax.scan(column, (right, jnp.zeros_like(right)), (matrix.T, x))
    return high + low


def _halves(x: Array) -> tuple[Array, Array]:
    """A number of half the bits, and the rest."""
    bits = jnp.finfo(x.dtype).bits
    unsigned = {32: jnp.uint32, 64: jnp.uint64}[bits]
    low = {32: 12, 64: 27}[bits]
    keep = jnp.asarray(~((1 << low) - 1) & ((1 << bits) - 1), unsigned)
    high = jax.lax.bitcast_convert_type(jax.lax.bitcast_convert_type(x, unsigned) & keep, x.dtype)
    return high, x - high


class Spectrum(NamedTuple):
    """Singular values of the task gradients over the largest norm, and their directions.

    Attributes:
        values: `[K]`, ascending; 0 for those that are none.
        kept: which are not zero: the last ones.
        vectors: `[K, K]`, a column of weights for each.
        inverse: `[K, K]`, the same columns divided by the singular values, 0 for zero ones.
    """

    values: Array
    kept: Array
    vectors: Array
    inverse: Array


def graded_spectrum(cosines: Array, norms: Array, mask: Array) -> Spectrum:
    """The singular values and left singular vectors of the matrix of task gradients.

    Where the norms are alike an eigendecomposition of `N C N` finds them. Where they differ so much
    that it would lose the small ones to rounding, one-sided Jacobi rotations do (Demmel & Veselic
    1992), whose accuracy depends on C alone.
    """
    size, dtype = len(norms), cosines.dtype
    mask = mask & (norms > 0)
    largest = jnp.max(jnp.where(mask, norms, 0))
    relative = jnp.where(mask, norms / jnp.where(largest > 0, largest, 1), 0)
    matrix = jnp.where(mask[:, None] & mask[None, :], off_diagonal(cosines, mask), 0)
    values, vectors = lapack.eigh(matrix)
    kept = values > values[-1] * rank_tolerance(size, dtype)

    scaled = matrix * relative[:, None] * relative[None, :]
    least = jnp.min(jnp.where(mask, relative, 1))
    smallest = jnp.min(jnp.where(kept, values, jnp.inf)) * least**2
    eps = float(jnp.finfo(dtype).eps)
    plain = (smallest > 4 * eps**0.5) | (least >= 0.99)  # the smallest to sqrt(eps) / 4

    def by_eigenvalues() -> Spectrum:
        squares, columns = lapack.eigh(scaled)
        count = kept.sum()
        alive = jnp.arange(size) >= size - count
        roots = jnp.sqrt(jnp.maximum(squares, jnp.finfo(dtype).tiny))
        inverse = jnp.where(alive, columns / roots, 0)
        return Spectrum(jnp.where(alive, roots, 0), alive, columns, inverse)

    def by_rotations() -> Spectrum:
        factor = vectors * jnp.sqrt(jnp.where(kept, values, 0))
        return _rotated(factor, relative, kept.sum())

    return jax.lax.cond(plain, by_eigenvalues, by_rotations)


class _Rotations(NamedTuple):
    units: Array
    lengths: Array
    left: Array
    order: Array
    largest: Array
    sweep: Array


def _rotated(factor: Array, norms: Array, rank: Array, sweeps: int = 12) -> Spectrum:
    """One-sided Jacobi on the rows `norms_k factor_k`: rotations of pairs until all are orthogonal.

    Rows are kept as lengths and unit vectors, so that no square under- or overflows; a row that
    vanishes against what it was is a dependent one, and becomes exactly zero.
    """
    size, dtype = factor.shape[0], factor.dtype
    eps = float(jnp.finfo(dtype).eps)
    even = size + size % 2
    grow = even - size
    lengths = jnp.linalg.norm(factor, axis=1)
    units = factor / jnp.where(lengths > 0, lengths, 1)[:, None]
    order = jnp.argsort(-norms * lengths)
    units = jnp.pad(units[order], ((0, grow), (0, 0)))
    lengths = jnp.pad((norms * lengths)[order], (0, grow))
    left = jnp.pad(jnp.eye(size, dtype=dtype)[order], ((0, grow), (0, 0)))
    half = even // 2

    def rotate(carry: _Rotations) -> _Rotations:
        """One round: the first half against the second half reversed."""
        first, second = carry.order[:half], carry.order[half:][::-1]
        swap = carry.lengths[first] < carry.lengths[second]
        i, j = jnp.where(swap, second, first), jnp.where(swap, first, second)
        x, y, m, n = carry.units[i], carry.units[j], carry.lengths[i], carry.lengths[j]
        ratio = n / jnp.where(m > 0, m, 1)
        cosine = jnp.sum(x * y, axis=1)
        both = (m > 0) & (n > 0) & (jnp.abs(cosine) > eps)
        gap = (1 - ratio) * (1 + ratio)
        # tan = ratio * slope is the smaller angle; slope stays of order one as ratio goes to 0.
        slope = 2 * cosine / (gap + jnp.sqrt(gap**2 + 4 * (ratio * cosine) ** 2))
        slope = jnp.where(both, slope, 0)
        tangent = ratio * slope
        c = jax.lax.rsqrt(1 + tangent**2)[:, None]
        up = c * (x + (tangent * ratio)[:, None] * y)
        down = c * (y - slope[:, None] * x)
        high, low = jnp.linalg.norm(up, axis=1), jnp.linalg.norm(down, axis=1)
        gone = low < 8 * size**0.5 * eps
        low = jnp.where(gone & both, 0, low)
        up = up / jnp.where(high > 0, high, 1)[:, None]
        down = jnp.where((low > 0)[:, None], down / jnp.where(low > 0, low, 1)[:, None], 0)
        p, q = carry.left[i], carry.left[j]
        units = carry.units.at[i].set(up).at[j].set(down)
        lengths = carry.lengths.at[i].set(m * high).at[j].set(n * low)
        t = tangent[:, None]
        left = carry.left.at[i].set(c * (p + t * q)).at[j].set(c * (q - t * p))
        order = jnp.concatenate([carry.order[:1], jnp.roll(carry.order[1:], 1)])
        worst = jnp.max(jnp.where(both, jnp.abs(cosine), 0), initial=0)
        return _Rotations(
            units, lengths, left, order, jnp.maximum(carry.largest, worst), carry.sweep
        )

    def sweep(carry: _Rotations) -> _Rotations:
        carry = carry._replace(largest=jnp.zeros((), dtype), sweep=carry.sweep + 1)
        return jax.lax.fori_loop(0, even - 1, lambda _, c: rotate(c), carry)

    start = _Rotations(
        units,
        lengths,
        left,
        jnp.arange(even),
        jnp.asarray(jnp.inf, dtype),
        jnp.zeros((), jnp.int32),
    )
    done = jax.lax.while_loop(
        lambda c: (c.largest > 4 * size**0.5 * eps) & (c.sweep < sweeps), sweep, start
    )
    ascending = jnp.argsort(done.lengths)[grow:]
    values, columns = done.lengths[ascending], done.left[ascending].T
    kept = (jnp.arange(size) >= size - rank) & (values > 0)
    inverse = jnp.where(kept, columns / jnp.where(kept, values, 1), 0)
    return Spectrum(jnp.where(kept, values, 0), kept, columns, inverse)
