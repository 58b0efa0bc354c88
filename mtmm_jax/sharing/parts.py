"""Shared parts of the sharings: selection of tasks, experts and their mixture, checks of fields."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from mtmm_jax.batch import Tokens
from mtmm_jax.layers import FeedForward
from mtmm_jax.registry import ConfigError

WHERE = "model.sharing"
# The entries of `SHARINGS` whose every layer over tokens is a task's own, or stands behind one.
SEVERAL_WIDTHS = ("adapter", "hard", "separate", "shared_middle", "task_gates")


def select_tasks(tasks: Iterable[str], copies: Mapping[str, Tokens]) -> dict[str, Tokens]:
    """The copies of `tasks` that are there, in the order of `tasks`; others' are left alone."""
    return {task: copies[task] for task in tasks if task in copies}


def form(copies: Mapping[str, Tokens]) -> tuple[int, Any]:
    """Width and dtype of the copies, which must be alike in both for layers that all pass."""
    values = next(iter(copies.values())).values
    widths = {task: tokens.values.shape[-1] for task, tokens in copies.items()}
    if len(set(widths.values())) > 1:
        found = ", ".join(f"{task} has {width}" for task, width in widths.items())
        raise ConfigError(
            f"{WHERE}: all tasks' tokens pass the same layers and must be of one width; {found}; "
            f"choices for several widths: {', '.join(SEVERAL_WIDTHS)}"
        )
    return values.shape[-1], values.dtype


def experts(
    names: Iterable[str], copies: Mapping[str, Tokens], expansion: int
) -> list[FeedForward]:
    """Networks Dense -> GELU -> Dense that keep the copies' width and dtype."""
    width, dtype = form(copies)
    return [FeedForward(expansion * width, dtype=dtype, name=name) for name in names]


def mixture(weights: jax.Array, parts: list[jax.Array]) -> jax.Array:
    """sum_e w_e f_e: `weights[B, E]` and E times `[B, N, D]`."""
    return jnp.einsum("be,ebnd->bnd", weights.astype(parts[0].dtype), jnp.stack(parts))
