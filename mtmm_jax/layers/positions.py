"""Positions as features."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def sinusoid(positions: jax.Array, width: int, shortest: float = 1.0) -> jax.Array:
    """`[..., P] -> [..., width]`: sines and cosines of each coordinate.

    Args:
        positions: seconds or (y, x), in units in which neighbours are about `shortest` apart.
        width: of the result; padded with zeros where it does not divide by 2P.
        shortest: the finest difference to be resolved.
    """
    coordinates = positions.shape[-1]
    count = width // (2 * coordinates)
    periods = shortest * 10_000.0 ** (jnp.arange(count, dtype=jnp.float32) / max(count, 1))
    angles = positions[..., None] / periods
    features = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    features = features.reshape(*positions.shape[:-1], 2 * count * coordinates)
    padding = width - features.shape[-1]
    return jnp.pad(features, [(0, 0)] * (features.ndim - 1) + [(0, padding)])


def fourier(positions: jax.Array, bands: int, longest: float, shortest: float = 2.0) -> jax.Array:
    """`[..., P] -> [..., 2 * bands * P]`: sines and cosines of `bands` periods of each coordinate.

    Periods go from `shortest` to `longest` in equal ratios: to be read next to the values, where
    `sinusoid` is to be added to them (Jaegle et al. 2021).
    """
    periods = jnp.geomspace(shortest, longest, bands, dtype=jnp.float32)
    angles = 2 * jnp.pi * positions[..., None] / periods
    features = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    return features.reshape(*positions.shape[:-1], 2 * bands * positions.shape[-1])
