"""A convolution that a CPU differentiates faster."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def convolve(
    x: jax.Array, kernel: jax.Array, strides: Any, padding: Any, **options: Any
) -> jax.Array:
    """`jax.lax.conv_general_dilated`, for the field of that name of a `flax.linen.Conv`.

    The kernel's gradient reads `x` and the slope transposed. XLA:CPU works both out anew inside
    those transposes, through every addition and norm since the last convolution, element by element
    and against the order of the memory: a fifth of a ResNet-18's step. Here both stay in memory.
    """
    options |= {"window_strides": strides, "padding": padding}
    if jax.default_backend() != "cpu":
        return jax.lax.conv_general_dilated(x, kernel, **options)

    @jax.custom_vjp
    def convolution(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(x, kernel, **options)

    def forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        return convolution(x, kernel), (x, kernel)

    def backward(
        kept: tuple[jax.Array, jax.Array], slope: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        x, kernel = kept
        x, slope = _in_memory((x, slope), kernel)
        _, pull = jax.vjp(lambda *of: jax.lax.conv_general_dilated(*of, **options), x, kernel)
        return pull(slope)

    convolution.defvjp(forward, backward)
    return convolution(x, kernel)


def _in_memory(arrays: Any, kernel: jax.Array) -> Any:
    """The arrays as they are: a choice that is made while the step runs, so that the compiler
    cannot move work through it. It drops an `optimization_barrier` before it fuses. Where the
    kernel is not a number, neither is any gradient."""
    return jax.lax.cond(
        jnp.isnan(kernel.ravel()[0]),
        lambda arrays: jax.tree.map(lambda array: array * jnp.nan, arrays),
        lambda arrays: arrays,
        arrays,
    )
