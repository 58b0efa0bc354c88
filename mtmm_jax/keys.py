"""Random keys by name and by example, never by the order of calls."""

from __future__ import annotations

import zlib
from typing import Any

import jax
import jax.numpy as jnp


def fold_in_name(key: jax.Array, name: str) -> jax.Array:
    """The key of a purpose: a module's path, a parameter's path, a task's name.

    Args:
        key: one key, or `[B]` keys.
        name: what the key is for.
    """
    number = zlib.crc32(name.encode())
    if key.ndim == 0:
        return jax.random.fold_in(key, number)
    return jax.vmap(lambda one: jax.random.fold_in(one, number))(key)


def example_keys(key: jax.Array, epoch: Any, index: jax.Array) -> jax.Array:
    """`[B]` keys, one for each example (by `index`, such as its id) in an epoch."""
    epochs = jnp.broadcast_to(jnp.asarray(epoch), index.shape)

    def one(epoch: jax.Array, index: jax.Array) -> jax.Array:
        return jax.random.fold_in(jax.random.fold_in(key, epoch), index)

    return jax.vmap(one)(epochs, index)
