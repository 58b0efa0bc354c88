"""Neighbouring tokens of one modality put together, so that fusion reads few, and found again."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from mtmm_jax.batch import Span, Tokens
from mtmm_jax.layers import fill_up, patches


def factors(grid: tuple[int, ...], most: int) -> tuple[int, ...]:
    """By how much to shrink each axis of a grid so that at most `most` cells are left."""
    by = [1] * len(grid)
    while math.prod(-(-n // f) for n, f in zip(grid, by, strict=True)) > most:
        longest = max(range(len(grid)), key=lambda i: grid[i] / by[i])
        by[longest] *= 2
    return tuple(by)


def grouped_tokens(tokens: Tokens, most: int) -> Tokens:
    """Neighbouring cells put side by side in one token, so that at most `most` are left.

    A group is there where any of its cells is, at the mean of their positions; masked cells are
    zeros in it.
    """
    (span,) = tokens.layout
    by = factors(span.grid, most)
    if set(by) == {1}:
        return tokens

    def group(x: jax.Array) -> jax.Array:
        x = x.reshape(x.shape[0], *span.grid, x.shape[-1])
        for axis, factor in enumerate(by, start=1):
            x = jnp.swapaxes(fill_up(jnp.swapaxes(x, 1, axis), factor), 1, axis)
        return patches(x, by)

    size = math.prod(by)
    values = group(tokens.zero_masked().values)
    grid = values.shape[1:-1]
    count = math.prod(grid)
    kept = group(tokens.mask[..., None]).reshape(-1, count, size)
    positions = tokens.positions
    if positions is not None:
        at = group(positions).reshape(positions.shape[0], count, size, positions.shape[-1])
        weight = kept[..., None].astype(at.dtype)
        positions = (at * weight).sum(2) / jnp.maximum(weight.sum(2), 1)
    stride = tuple(s * f for s, f in zip(span.stride, by, strict=True))
    return Tokens(
        values.reshape(values.shape[0], count, values.shape[-1]),
        kept.any(-1),
        positions,
        (Span(span.name, count, grid, stride),),
    )


def spread_out(values: jax.Array, groups: Tokens, cells: Tokens) -> jax.Array:
    """`[B, groups, D] -> [B, cells, D]`: what belongs to a group, for every cell of it."""
    (span,), (whole,) = groups.layout, cells.layout
    values = values.reshape(values.shape[0], *span.grid, values.shape[-1])
    for axis, (few, many) in enumerate(zip(span.grid, whole.grid, strict=True), start=1):
        values = jnp.repeat(values, -(-many // few), axis=axis)
        values = jax.lax.slice_in_dim(values, 0, many, axis=axis)
    return values.reshape(values.shape[0], whole.length, values.shape[-1])
