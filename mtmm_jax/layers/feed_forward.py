"""The position-wise network of a Transformer block, and a GELU that is cheap to differentiate."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mtmm_jax.layers.dropout import Dropout


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


class FeedForward(nn.Module):
    """Dense -> GELU -> Dense, on token matrices."""

    hidden: int
    dropout: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool = False, axis_name: str | None = None
    ) -> jax.Array:
        h = gelu(nn.Dense(self.hidden, dtype=self.dtype, name="up")(x))
        h = Dropout(self.dropout)(h, train=train, axis_name=axis_name)
        return nn.Dense(x.shape[-1], dtype=self.dtype, name="down")(h)
