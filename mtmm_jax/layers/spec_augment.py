"""SpecAugment (Park et al. 2019): stretches of time and of frequency left out in training."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from mtmm_jax.layers.positionwise import batch_rows


class SpecAugment(nn.Module):
    """Zeroes up to `width` neighbours, `count` times, on the time and the band axis.

    Draws belong to the rows of the whole batch, as in `Dropout`.

    Attributes:
        times, bands: how many stretches of each axis.
        time_width, band_width: the longest stretch; lengths are uniform from 0.
    """

    times: int = 2
    bands: int = 2
    time_width: int = 12
    band_width: int = 6

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool = False, axis_name: str | None = None
    ) -> jax.Array:
        """`x[B, T, F]`."""
        if not train or not self.times + self.bands:
            return x
        rows = batch_rows(x.shape[0], axis_name)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(self.make_rng("dropout"), rows)
        draws = jax.vmap(lambda key: jax.random.uniform(key, (self.times + self.bands, 2)))(keys)
        time = _left(draws[:, : self.times], x.shape[1], self.time_width)
        band = _left(draws[:, self.times :], x.shape[2], self.band_width)
        return jnp.where(time[:, :, None] & band[:, None], x, jnp.zeros((), x.dtype))


def _left(draws: jax.Array, size: int, width: int) -> jax.Array:
    """`[B, size]` bool: what is in none of the stretches `draws[B, count, 2]`."""
    length = jnp.floor(draws[..., 0] * (min(width, size) + 1))
    start = jnp.floor(draws[..., 1] * (size - length + 1))
    at = jnp.arange(size, dtype=jnp.float32)
    inside = (at >= start[..., None]) & (at < (start + length)[..., None])
    return ~inside.any(1)
