"""Decision fusion: a task's prediction from those of each modality alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mtmm_jax.batch import Tokens
from mtmm_jax.model.forward import ForwardPass
from mtmm_jax.registry import ConfigError


def decide(
    forward: ForwardPass,
    task: str,
    head: nn.Module,
    rule: nn.Module,
    reads: Mapping[str, Mapping[str, Tokens]],
) -> Any:
    """The fused prediction of a task.

    Args:
        forward: the pass.
        task: its name; each modality has a head of its own at `heads/<task>/<modality>`.
        head: the module that predicts from one modality.
        rule: fuses the predictions `[B, M, P]` of the modalities present `[B, M]`.
        reads: modality -> what its head reads, `{read: tokens}`.
    """
    values, present = [], []
    for modality, read in reads.items():
        prediction = forward(f"heads/{task}/{modality}", head, read)
        flat, rebuild = _flattened(prediction, task)
        values.append(flat)
        present.append(next(iter(read.values())).present)
    stacked = jnp.stack(values, axis=1), jnp.stack(present, axis=1)
    return rebuild(forward(f"heads/{task}/decision", rule, *stacked))


def _flattened(prediction: Any, task: str) -> tuple[jax.Array, Callable[[jax.Array], Any]]:
    """`[B, P]` of all that a head predicts, and the way back."""
    leaves, treedef = jax.tree.flatten(prediction)
    rows = leaves[0].shape[:1]
    for leaf in leaves:
        if leaf.shape[:1] != rows or not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ConfigError(
                f"model.fusion.stage: 'decision' fuses numbers for each sample; tasks.{task} "
                "predicts something else; choices: early, middle, late"
            )
    sizes = [leaf[0].size for leaf in leaves]
    flat = jnp.concatenate([x.reshape(x.shape[0], -1) for x in leaves], axis=-1)

    def rebuild(fused: jax.Array) -> Any:
        parts = jnp.split(fused, np.cumsum(sizes)[:-1], axis=-1)
        back = [p.reshape(leaf.shape) for p, leaf in zip(parts, leaves, strict=True)]
        return jax.tree.unflatten(treedef, back)

    return flat, rebuild
