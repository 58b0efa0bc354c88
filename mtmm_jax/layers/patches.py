"""Grids of any dimension cut into patches: what pictures, spectrograms and clips have in common."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp


def patches(x: jax.Array, sizes: Sequence[int]) -> jax.Array:
    """`[B, *grid * sizes, C] -> [B, *grid, prod(sizes) * C]`.

    A Dense layer on the result is a convolution whose stride is its kernel, as one matrix product.
    """
    batch, channels = x.shape[0], x.shape[-1]
    grid = [n // size for n, size in zip(x.shape[1:-1], sizes, strict=True)]
    dims = [n for pair in zip(grid, sizes, strict=True) for n in pair]
    x = x.reshape(batch, *dims, channels)
    outer, inner = range(1, len(dims), 2), range(2, len(dims) + 1, 2)
    x = x.transpose(0, *outer, *inner, len(dims) + 1)
    return x.reshape(batch, *grid, math.prod(sizes) * channels)


def fill_up(x: jax.Array, size: int) -> jax.Array:
    """Pads axis 1 with zeros (False) to a multiple of `size`."""
    more = -x.shape[1] % size
    return jnp.pad(x, [(0, 0), (0, more)] + [(0, 0)] * (x.ndim - 2)) if more else x


def cells(grid: Sequence[int], strides: Sequence[float]) -> jax.Array:
    """`[prod(grid), len(grid)]` float32: the centres of a grid's cells, row by row."""
    axes = [
        (jnp.arange(n, dtype=jnp.float32) + 0.5) * stride
        for n, stride in zip(grid, strides, strict=True)
    ]
    return jnp.stack(jnp.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(axes))
