"""Dropout whose noise belongs to the rows of the whole batch, not to the devices that hold them."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mtmm_jax.devices import parallel


def batch_bernoulli(
    key: jax.Array,
    keep: float | Sequence[float],
    shape: tuple[int, ...],
    axis_name: str | None,
) -> jax.Array:
    """Independent draws for this device's rows; the same rows draw the same on any device count.

    Args:
        key: the same on all devices.
        keep: the probability of True, to the nearest 1/256; or one for each index of the last axis.
        shape: `[rows on this device, ...]`.
        axis_name: the devices' axis inside pmap, or None.
    """
    rows = parallel.rank(axis_name) * shape[0] + jnp.arange(shape[0])
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, rows)
    # A byte a draw: random bits are what dropout costs on a CPU, and 1/256 is fine enough.
    bits = jax.vmap(lambda k: jax.random.bits(k, shape[1:], jnp.uint8))(keys)
    several = isinstance(keep, Sequence)
    least = np.array([_threshold(each) for each in keep]) if several else _threshold(keep)
    return bits.astype(jnp.int32) < least


def batch_normal(key: jax.Array, shape: tuple[int, ...], axis_name: str | None) -> jax.Array:
    """As `batch_bernoulli`: float32 draws from N(0, 1) for this device's rows."""
    rows = parallel.rank(axis_name) * shape[0] + jnp.arange(shape[0])
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, rows)
    return jax.vmap(lambda k: jax.random.normal(k, shape[1:], jnp.float32))(keys)


def _threshold(keep: float) -> int:
    return round(256 * keep)


class Dropout(nn.Module):
    """Zeroes a share `rate` of the values in training and scales the rest by 1 / (1 - rate)."""

    rate: float

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool = False, axis_name: str | None = None
    ) -> jax.Array:
        if not train or self.rate == 0.0:
            return x
        keep = _threshold(1.0 - self.rate) / 256
        kept = batch_bernoulli(self.make_rng("dropout"), keep, x.shape, axis_name)
        return jnp.where(kept, x / keep, jnp.zeros((), x.dtype))
