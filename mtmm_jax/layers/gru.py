"""A gated recurrent unit over masked sequences, in one or both directions."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


class GRU(nn.Module):
    """r, z = sigmoid(..); n = tanh(W x + r * (U h)); h <- (1 - z) n + z h where the mask is set.

    A masked step leaves the state alone, so padding changes nothing. The input's half of the
    gates is one matrix product before the scan; only `U h` is inside it.

    Attributes:
        width: of the state.
        reverse: whether it reads from the end.
        dtype: of the matrix products; the state, which is added to at every step, is in float32.
    """

    width: int
    reverse: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """`x[B, N, D], mask[B, N] -> [B, N, width]`."""
        gates = nn.Dense(3 * self.width, dtype=self.dtype, name="input")(x)
        recurrent = self.param(
            "recurrent", nn.initializers.orthogonal(), (self.width, 3 * self.width)
        )
        recurrent = recurrent.astype(self.dtype)
        bias = self.param("recurrent_bias", nn.initializers.zeros, (3 * self.width,))

        def step(h: jax.Array, inputs: tuple[jax.Array, jax.Array]):
            gate, keep = inputs
            reset_x, update_x, new_x = jnp.split(gate.astype(jnp.float32), 3, axis=-1)
            own = (h.astype(self.dtype) @ recurrent).astype(jnp.float32) + bias
            reset_h, update_h, new_h = jnp.split(own, 3, axis=-1)
            reset = jax.nn.sigmoid(reset_x + reset_h)
            update = jax.nn.sigmoid(update_x + update_h)
            new = jnp.tanh(new_x + reset * new_h)
            h = jnp.where(keep[:, None], new + update * (h - new), h)
            return h, h

        start = jnp.zeros((x.shape[0], self.width), jnp.float32)
        _, states = jax.lax.scan(
            step, start, (gates.swapaxes(0, 1), mask.swapaxes(0, 1)), reverse=self.reverse
        )
        return states.swapaxes(0, 1)
