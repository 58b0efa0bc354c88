"""Norms of images and of sequences of features that know which rows are present."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from mtmm_jax import parallel


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
        return x * factor.astype(x.dtype) + (bias - used_mean * factor).astype(x.dtype)

    def _statistics(self, x, present, mean, var, axis_name):
        axes = tuple(range(x.ndim - 1))
        x = x.astype(jnp.float32)
        keep = present.reshape(present.shape + (1,) * (x.ndim - present.ndim)).astype(jnp.float32)
        cells = x.size // (present.size * x.shape[-1])
        count = parallel.total(present.sum().astype(jnp.float32), axis_name) * cells
        safe = jnp.maximum(count, 1.0)
        # One pass over x for both sums; float32 holds the difference well enough for activations,
        # which are centred by design.
        sums = jnp.stack([(x * keep).sum(axes), (jnp.square(x) * keep).sum(axes)])
        new_mean, square = parallel.total(sums, axis_name) / safe
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


class LayerNorm(nn.LayerNorm):
    """Layer normalisation, computed in float32 and given back in the dtype of x."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return super().__call__(x.astype(jnp.float32)).astype(x.dtype)


NORMS = {"batch": BatchNorm, "group": GroupNorm}
