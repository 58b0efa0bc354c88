"""Factorisations that `vmap` takes one after the other on a CPU.

There, jaxlib's LAPACK kernels divide a batch among the threads of XLA's pool and wait for them
inside that pool: two that run at a time, each in a thread of its own, wait forever (two cores,
eight Cholesky factorisations of 64 x 64 in float64 next to eight others). A kernel without a batch
waits for nobody.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.linalg import cho_factor, cho_solve

Array = jax.Array


def _one_at_a_time(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, whose batches a CPU maps over; what else runs it takes the batch at once."""
    single = jax.custom_batching.custom_vmap(function)

    @single.def_vmap
    def batched(size: int, is_batched: Any, *operands: Array) -> tuple[Any, Any]:
        operands = tuple(
            x if has else jnp.broadcast_to(x, (size, *x.shape))
            for x, has in zip(operands, is_batched, strict=True)
        )
        out = jax.lax.platform_dependent(
            *operands,
            cpu=lambda *xs: jax.lax.map(lambda each: single(*each), xs),
            default=jax.vmap(function),
        )
        return out, jax.tree.map(lambda _: True, out)

    return single


@_one_at_a_time
def cholesky(matrix: Array) -> Array:
    """The upper factor of a positive definite matrix."""
    return cho_factor(matrix)[0]


@_one_at_a_time
def solve_factored(factor: Array, right: Array) -> Array:
    """`M x = right` by the upper Cholesky factor of M."""
    return cho_solve((factor, False), right)


@_one_at_a_time
def eigh(matrix: Array) -> tuple[Array, Array]:
    """Eigenvalues, ascending, and eigenvectors of a symmetric matrix."""
    values, vectors = jnp.linalg.eigh(matrix)
    return values, vectors
