"""Batch and group norm of images and sequences, which know the rows that are present."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mtmm_jax.devices import parallel
from mtmm_jax.layers.positionwise import column_sums


@jax.custom_vjp
def moments(x: jax.Array, keep: jax.Array) -> jax.Array:
    """`[2, C]`: the sums of x and of its square, as `column_sums`."""
    return jnp.stack([column_sums(x, keep), column_sums(jnp.square(x.astype(jnp.float32)), keep)])


def _moments_backward(inputs: tuple[jax.Array, jax.Array], slope: jax.Array) -> tuple[Any, None]:
    x, keep = inputs
    wide = keep[..., None].astype(jnp.float32) * (slope[0] + 2.0 * x.astype(jnp.float32) * slope[1])
    return wide.astype(x.dtype), None


moments.defvjp(lambda x, keep: (moments(x, keep), (x, keep)), _moments_backward)


@jax.custom_vjp
def affine(x: jax.Array, factor: jax.Array, offset: jax.Array) -> jax.Array:
    """x * factor + offset in the dtype of x; `factor[C]` and `offset[C]` are float32. Its gradients
    are `column_sums`."""
    return x * factor.astype(x.dtype) + offset.astype(x.dtype)


def _affine_backward(
    inputs: tuple[jax.Array, jax.Array], slope: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    x, factor = inputs
    both = slope.astype(jnp.float32) * x.astype(jnp.float32)
    return slope * factor.astype(slope.dtype), column_sums(both), column_sums(slope)


affine.defvjp(lambda x, factor, offset: (affine(x, factor, offset), (x, factor)), _affine_backward)


class BatchNorm(nn.Module):
    """Batch normalisation over the present rows of all devices.

    The filler of an absent row never reaches the statistics; if no row is present the running
    statistics are used and stay as they are. Sums, not means, are reduced over devices: devices
    with different numbers of present rows still give the whole batch's statistics.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        present: jax.Array,
        *,
        train: bool = False,
        axis_name: str | None = None,
    ) -> jax.Array:
        """`x[B, ..., C]`; `present[B]` or a mask over more of x's leading axes."""
        size = x.shape[-1]
        mean = self.variable("batch_stats", "mean", jnp.zeros, (size,))
        var = self.variable("batch_stats", "var", jnp.ones, (size,))
        scale = self.param("scale", nn.initializers.ones, (size,))
        bias = self.param("bias", nn.initializers.zeros, (size,))
        if train:
            used_mean, used_var = self._statistics(x, present, mean.value, var.value, axis_name)
            if not self.is_initializing():
                decay = self.momentum
                mean.value = decay * mean.value + (1 - decay) * used_mean
                var.value = decay * var.value + (1 - decay) * used_var
        else:
            used_mean, used_var = mean.value, var.value
        factor = scale * jax.lax.rsqrt(used_var + self.epsilon)
        return affine(x, factor, bias - used_mean * factor)

    def _statistics(self, x, present, mean, var, axis_name):
        keep = present.reshape(present.shape + (1,) * (x.ndim - 1 - present.ndim))
        keep = jnp.broadcast_to(keep, x.shape[:-1])
        cells = x.size // (present.size * x.shape[-1])
        count = parallel.total(present.sum().astype(jnp.float32), axis_name) * cells
        safe = jnp.maximum(count, 1.0)
        # float32 holds the difference of both sums well enough for activations, which are centred
        # by design.
        new_mean, square = parallel.total(moments(x, keep), axis_name) / safe
        new_var = jnp.maximum(square - jnp.square(new_mean), 0.0)
        some = count > 0
        return jnp.where(some, new_mean, mean), jnp.where(some, new_var, var)


class GroupNorm(nn.Module):
    """Group normalisation of each row by itself: nothing to synchronise, nothing to remember."""

    groups: int = 8
    epsilon: float = 1e-5

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        present: jax.Array,
        *,
        train: bool = False,
        axis_name: str | None = None,
    ) -> jax.Array:
        del present, train, axis_name
        norm = nn.GroupNorm(self.groups, epsilon=self.epsilon, name="norm")
        return norm(x.astype(jnp.float32)).astype(x.dtype)


NORMS = {"batch": BatchNorm, "group": GroupNorm}
