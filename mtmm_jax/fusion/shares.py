"""Shares of modalities: of those present they sum to one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from mtmm_jax.batch import choose_all
from mtmm_jax.registry import ConfigError, positive_number


def present_shares(logits: jax.Array, present: jax.Array) -> jax.Array:
    """Softmax over the last axis among the present ones; zeros where none is."""
    least = jnp.finfo(logits.dtype).min
    weights = jax.nn.softmax(jnp.where(present, logits, least))
    return jnp.where(present, weights, jnp.zeros((), weights.dtype))


def check_shares(weights: Mapping[str, float], names: Sequence[str], where: str) -> list[float]:
    """Fixed shares in the order of `names`, each above 0; every modality has one."""
    choose_all(weights, names, where, "modality")
    missing = [name for name in names if name not in weights]
    if missing:
        raise ConfigError(f"{where}: no weight for {', '.join(missing)}")
    for name in names:
        positive_number(weights[name], f"{where}.{name}")
    return [float(weights[name]) for name in names]
