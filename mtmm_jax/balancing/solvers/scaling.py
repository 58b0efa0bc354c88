"""Masked arithmetic on K numbers, and the scaling that all solvers share."""

from __future__ import annotations

import jax
import jax.numpy as jnp

Array = jax.Array


def ridge(dtype: jnp.dtype) -> float:
    """The multiple of I added to a unit-diagonal matrix before it is factorised.

    1.4e-5 in float32, 1e-11 in float64: well above the rounding error of such a matrix, so that
    directions which rounding has made up stay small. Solutions are refined against the matrix
    without it.
    """
    return float(jnp.finfo(dtype).eps) ** 0.7


def rank_tolerance(size: int, dtype: jnp.dtype) -> float:
    """Eigenvalues below this share of the largest are those of dependent rows."""
    return max(size, 8) * float(jnp.finfo(dtype).eps)


def inverse_scale(squared: Array, mask: Array) -> Array:
    """`1/sqrt(squared)` where the task counts and is not zero, else 0."""
    usable = mask & (squared > 0)
    return jnp.where(usable, jax.lax.rsqrt(jnp.where(usable, squared, 1)), 0)


def off_diagonal(matrix: Array, mask: Array) -> Array:
    """The rows and columns that count, with a diagonal of ones; the identity elsewhere."""
    size = matrix.shape[0]
    both = mask[:, None] & mask[None, :] & ~jnp.eye(size, dtype=bool)
    return jnp.where(both, matrix, jnp.eye(size, dtype=matrix.dtype))


def masked_sum(values: Array, mask: Array) -> Array:
    """Sum over the tasks that count."""
    return jnp.sum(jnp.where(mask, values, 0))


def task_count(mask: Array, dtype: jnp.dtype) -> Array:
    """The number of tasks that count, at least 1, as a float."""
    return jnp.maximum(mask.sum(), 1).astype(dtype)


def uniform(mask: Array, dtype: jnp.dtype) -> Array:
    """Equal weights of the tasks that count, summing to one."""
    return mask.astype(dtype) / task_count(mask, dtype)


def masked_softmax(values: Array, mask: Array) -> Array:
    """Softmax over the tasks that count, 0 for the others."""
    return jax.nn.softmax(jnp.where(mask, values, 0), where=mask)


def project_simplex(values: Array, mask: Array) -> Array:
    """The nearest point of the simplex over the tasks that count."""
    size = values.shape[0]
    finite = float(jnp.finfo(values.dtype).max) / 4
    values = jnp.clip(values, -finite, finite)
    # The projection does not change with a shift, and one below the largest is zero already.
    below = values - jnp.max(jnp.where(mask, values, -finite))
    values = jnp.where(mask, jnp.maximum(below, -2), -2)
    ordered = jnp.sort(values)[::-1]
    sums = jnp.cumsum(ordered)
    ranks = jnp.arange(1, size + 1, dtype=values.dtype)
    count = jnp.max(jnp.where(ordered * ranks > sums - 1, ranks, 1))
    shift = (jnp.sum(jnp.where(ranks <= count, ordered, 0)) - 1) / count
    return jnp.where(mask, jnp.maximum(values - shift, 0), 0)
