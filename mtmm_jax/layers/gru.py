"""A gated recurrent unit over masked sequences, in one or both directions."""

from __future__ import annotations

import functools
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
        x, mask = x.swapaxes(0, 1), mask.swapaxes(0, 1)[..., None]  # narrower than the gates
        gates = nn.Dense(3 * self.width, dtype=self.dtype, name="input")(x)
        recurrent = self.param(
            "recurrent", nn.initializers.orthogonal(), (self.width, 3 * self.width)
        )
        bias = self.param("recurrent_bias", nn.initializers.zeros, (3 * self.width,))
        states = recur(gates, mask, recurrent.astype(self.dtype), bias, self.reverse)
        return states.swapaxes(0, 1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def recur(
    gates: jax.Array, mask: jax.Array, recurrent: jax.Array, bias: jax.Array, reverse: bool
) -> jax.Array:
    """The states of a GRU, `[N, B, W]` float32, of the input's `gates[N, B, 3 * W]`.

    Its derivative is written by hand: dU = sum_t h_{t-1}^T d_t is one matrix product after the
    scan, where autodiff would add up N small ones inside it.

    Args:
        gates: W x + b, for reset, update and new state.
        mask: `[N, B, 1]`; where it is not set, the state stays.
        recurrent: U, `[W, 3 * W]`, in the dtype of the products inside.
        bias: of U h, `[3 * W]`.
        reverse: whether to start from the end.
    """
    return _forward(gates, mask, recurrent, bias, reverse)[0]


def _forward(
    gates: jax.Array, mask: jax.Array, recurrent: jax.Array, bias: jax.Array, reverse: bool
) -> tuple[jax.Array, tuple[Any, ...]]:
    def step(h: jax.Array, inputs: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, Any]:
        gate, keep = inputs
        reset_x, update_x, new_x = jnp.split(gate.astype(jnp.float32), 3, axis=-1)
        own = (h.astype(recurrent.dtype) @ recurrent).astype(jnp.float32) + bias
        reset_h, update_h, new_h = jnp.split(own, 3, axis=-1)
        reset = jax.nn.sigmoid(reset_x + reset_h)
        update = jax.nn.sigmoid(update_x + update_h)
        new = jnp.tanh(new_x + reset * new_h)
        h = jnp.where(keep, new + update * (h - new), h)
        return h, (h, reset, update, new, new_h)

    start = jnp.zeros((gates.shape[1], recurrent.shape[0]), jnp.float32)
    _, (states, *inner) = jax.lax.scan(step, start, (gates, mask), reverse=reverse)
    return states, (mask, recurrent, jnp.zeros((), gates.dtype), states, *inner)


def _backward(
    reverse: bool, residuals: tuple[Any, ...], slope: jax.Array
) -> tuple[jax.Array | None, ...]:
    mask, recurrent, like, states, *inner = residuals
    back = recurrent.T

    def step(d_h: jax.Array, inputs: tuple[jax.Array, ...]) -> tuple[jax.Array, Any]:
        more, keep, h, reset, update, new, new_h = inputs
        d_h = d_h + more
        live = jnp.where(keep, d_h, 0.0)
        # z (h_{t-1} - n) is h_t - n, so that the state before is not needed.
        d_update = live * (h - new) * (1.0 - update)
        d_new = live * (1.0 - update) * (1.0 - jnp.square(new))
        d_new_h = d_new * reset
        d_reset = d_new_h * new_h * (1.0 - reset)
        d_own = jnp.concatenate([d_reset, d_update, d_new_h], axis=-1).astype(recurrent.dtype)
        d_h = jnp.where(keep, live * update, d_h) + (d_own @ back).astype(jnp.float32)
        return d_h, (d_own, d_new)

    _, (d_own, d_new) = jax.lax.scan(
        step, jnp.zeros_like(states[0]), (slope, mask, states, *inner), reverse=not reverse
    )
    width = states.shape[-1]
    # The state before the first step is zero: it tells the weights nothing.
    before, after = (states[1:], d_own[:-1]) if reverse else (states[:-1], d_own[1:])
    before = before.astype(recurrent.dtype).reshape(-1, width)
    d_recurrent = before.T @ after.reshape(-1, 3 * width)
    d_bias = d_own.astype(jnp.float32).sum((0, 1))
    d_gates = jnp.concatenate([d_own[..., : 2 * width], d_new.astype(d_own.dtype)], axis=-1)
    return d_gates.astype(like.dtype), None, d_recurrent, d_bias


recur.defvjp(_forward, _backward)
