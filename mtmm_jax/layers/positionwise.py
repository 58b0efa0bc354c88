"""Layers that act on each token alone: LayerNorm, Dense, GELU, dropout and the feed-forward
network.

Dropout's noise belongs to the rows of the whole batch, not to the devices that hold them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


class LayerNorm(nn.LayerNorm):
    """Layer normalisation, computed in float32 and given back in the dtype of x."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return super().__call__(x.astype(jnp.float32)).astype(x.dtype)


def column_sums(x: jax.Array, keep: jax.Array | None = None) -> jax.Array:
    """`[B, ..., C] -> [C]` float32: sums over all axes but the last, where `keep[B, ...]` is set.

    On CPUs XLA walks such a sum down its columns, on one core, several times slower than memory; a
    product of each row with ones does not.
    """
    x = x.astype(jnp.float32)
    keep = jnp.ones(x.shape[:-1]) if keep is None else keep.astype(jnp.float32)

    def by_products(x: jax.Array, keep: jax.Array) -> jax.Array:
        rows = (x.shape[0] if x.ndim > 2 else 1, -1)
        x, keep = x.reshape(*rows, x.shape[-1]), keep.reshape(rows)
        highest = jax.lax.Precision.HIGHEST
        return jnp.einsum("bn,bnc->bc", keep, x, precision=highest).sum(0)

    def by_sums(x: jax.Array, keep: jax.Array) -> jax.Array:
        return (x * keep[..., None]).sum(range(x.ndim - 1))

    return jax.lax.platform_dependent(x, keep, cpu=by_products, default=by_sums)


@jax.custom_vjp
def add_bias(x: jax.Array, bias: jax.Array) -> jax.Array:
    """x + bias, whose gradient is `column_sums`."""
    return x + bias


def _add_bias_backward(bias: jax.Array, slope: jax.Array) -> tuple[jax.Array, jax.Array]:
    return slope, column_sums(slope).astype(bias.dtype)


add_bias.defvjp(lambda x, bias: (add_bias(x, bias), bias), _add_bias_backward)


class Dense(nn.Dense):
    """x W + b, on `[B, N, D]`, with the bias added by `add_bias`.

    With many tokens the sum over them costs a CPU a twentieth of a Transformer's step otherwise.
    """

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        if self.dot_general or self.dot_general_cls:
            return super().__call__(inputs)
        shape, bias = (inputs.shape[-1], self.features), None
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        if self.use_bias:
            bias = self.param("bias", self.bias_init, shape[1:], self.param_dtype)
        x, kernel, bias = self.promote_dtype(inputs, kernel, bias, dtype=self.dtype)
        x = jnp.matmul(x, kernel, precision=self.precision)
        return x if bias is None else add_bias(x, bias)


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
    """The exact GELU, x * Phi(x).

    Its derivative is computed once, in the forward pass: left to itself XLA recomputes erf and exp
    inside the fused, strided operands of the backward matrix products.
    """
    return jax.nn.gelu(x, approximate=False)


def _gelu_forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    phi = 0.5 * (1.0 + jax.lax.erf(x * 0.5**0.5))
    slope = phi + x * jnp.exp(-0.5 * jnp.square(x)) * (2.0 * jnp.pi) ** -0.5
    return x * phi, slope


gelu.defvjp(_gelu_forward, lambda slope, g: (g * slope,))


def batch_rows(count: int, axis_name: str | None) -> jax.Array:
    """`[count]`: the indices of this device's rows in the whole batch."""
    first = 0 if axis_name is None else jax.lax.axis_index(axis_name) * count
    return first + jnp.arange(count)


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
    rows = batch_rows(shape[0], axis_name)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, rows)
    # A byte a draw: random bits are what dropout costs on a CPU, and 1/256 is fine enough.
    bits = jax.vmap(lambda k: jax.random.bits(k, shape[1:], jnp.uint8))(keys)
    several = isinstance(keep, Sequence)
    least = np.array([_threshold(each) for each in keep]) if several else _threshold(keep)
    return bits.astype(jnp.int32) < least


def batch_normal(key: jax.Array, shape: tuple[int, ...], axis_name: str | None) -> jax.Array:
    """As `batch_bernoulli`: float32 draws from N(0, 1) for this device's rows."""
    rows = batch_rows(shape[0], axis_name)
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


class FeedForward(nn.Module):
    """Dense -> GELU -> Dense, on token matrices."""

    hidden: int
    dropout: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool = False, axis_name: str | None = None
    ) -> jax.Array:
        h = gelu(Dense(self.hidden, dtype=self.dtype, name="up")(x))
        h = Dropout(self.dropout)(h, train=train, axis_name=axis_name)
        return Dense(x.shape[-1], dtype=self.dtype, name="down")(h)
