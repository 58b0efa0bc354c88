"""Gradient reversal: identity forwards, a negative factor backwards (Ganin et al. 2016,
arXiv:1505.07818)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mtmm_jax.ranges import Natural, Positive
from mtmm_jax.registry import build, check

STEEPNESS = 10.0  # of the ramp, as published


@jax.custom_vjp
def reverse(x: jax.Array, scale: jax.Array | float) -> jax.Array:
    """x forwards; backwards the gradient of x is -scale times that of the output."""
    del scale
    return x


def _forward(x: jax.Array, scale: jax.Array | float) -> tuple[jax.Array, jax.Array]:
    return x, jnp.asarray(scale, jnp.float32)


def _backward(scale: jax.Array, slope: jax.Array) -> tuple[jax.Array, jax.Array]:
    return (-scale).astype(slope.dtype) * slope, jnp.zeros_like(scale)


reverse.defvjp(_forward, _backward)


class Reversal(nn.Module):
    """`reverse` with a scale that grows over the first steps (Ganin et al. 2016).

        scale (2 / (1 + exp(-10 t / ramp)) - 1),  t the training steps so far, at most `ramp`

    The steps are counted in the batch statistics, so that a checkpoint resumes them. Without a
    ramp nothing is counted. Costs nothing. While the ramp is low the classifier behind it learns
    what there is to tell, and the parts before it hardly feel it.

    Attributes:
        scale: at the end of the ramp.
        ramp: steps that the growth takes; 0 for none.
    """

    scale: Positive = 1.0
    ramp: Natural = 0

    @nn.compact
    def __call__(self, x: Any, *, train: bool = False, axis_name: str | None = None) -> Any:
        """Any tree of arrays."""
        del axis_name
        scale: jax.Array | float = self.scale
        if self.ramp:
            steps = self.variable("batch_stats", "steps", jnp.zeros, ())
            scale = self.scale * grown(steps.value, self.ramp)
            if train and not self.is_initializing():
                steps.value = steps.value + 1.0
        return jax.tree.map(lambda leaf: reverse(leaf, scale), x)


def grown(step: jax.Array, ramp: int) -> jax.Array:
    """From 0 to nearly 1 while `step` goes from 0 to `ramp`."""
    share = jnp.minimum(step / ramp, 1.0)
    return 2.0 / (1.0 + jnp.exp(-STEEPNESS * share)) - 1.0


def read_reversal(config: Any, where: str) -> Reversal | None:
    """A task's option `reverse`: None, True, or `{"scale": 1.0, "ramp": steps}`."""
    check(config, bool | Mapping[str, Any] | None, where)
    if config is None or config is False:
        return None
    options = {} if config is True else config
    return build({"reversal": Reversal}, {"kind": "reversal", **options}, where=where)
