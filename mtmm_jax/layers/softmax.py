"""The softmax over what is there."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def masked_softmax(logits: jax.Array, allowed: jax.Array) -> jax.Array:
    """The softmax over the last axis where `allowed`; zeros, not NaN, where nothing is."""
    logits = jnp.where(allowed, logits.astype(jnp.float32), jnp.finfo(jnp.float32).min)
    return jnp.where(allowed, jax.nn.softmax(logits), 0.0)
