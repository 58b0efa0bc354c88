"""The position-wise network of a Transformer block, and a GELU that is cheap to differentiate."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mtmm_jax.layers.dropout import Dropout
from mtmm_jax.layers.norms import column_sums


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
