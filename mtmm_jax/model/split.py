"""The model's losses as `balancing` takes them: cut where each task may have its own copy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mtmm_jax import balancing
from mtmm_jax.batch import Batch
from mtmm_jax.model.model import Model

Teach = Callable[[Any, Batch, jax.Array], dict[str, Any]]
"""`(variables to evaluate, batch, step) -> {target: {"y", "present"}}`."""


def split_of(
    model: Model, axis_name: str | None, measure: Callable[..., Any] | None = None
) -> balancing.Split:
    """The model's losses, cut where balancing may give each task its own copy.

    Args:
        model: the model.
        axis_name: the devices' axis, or None.
        measure: `(shared, predictions, batch) -> (sums, terms)`: sums of this device's rows, told
            as `aux["imbalance"]`, and the losses that were added to the model's, by name.
    """

    tasks = len(model.tasks)

    def mode(key: jax.Array) -> dict[str, Any]:
        return {"train": True, "key": key, "axis_name": axis_name}

    def trunk(params: Any, batch_stats: Any, batch: Batch, key: jax.Array):
        variables = {"params": params, "batch_stats": batch_stats}
        shared, updates = model.trunk(variables, batch["inputs"], **mode(key))
        return shared, updates.get("batch_stats", {})

    def readout(params: Any, copies: Any, stats: Any, batch_stats: Any, batch: Batch, key: Any):
        variables = {"params": params, "batch_stats": batch_stats}
        mine = dict(zip(model.tasks, copies, strict=False))
        predictions, updates = model.readout(variables, mine, **mode(key))
        losses = [model.losses(predictions, batch, axis_name)]
        told, more = {"batch_stats": {**stats, **updates.get("batch_stats", {})}}, {}
        if measure is not None:
            own = copies[tasks] if model.added else None
            told["imbalance"], more = measure(own, predictions, batch)
        if model.auxiliaries:
            beside = model.auxiliary_losses(variables, copies[tasks], batch, more, **mode(key))
            losses.append(beside)
        sums, counts = (jnp.concatenate(part) for part in zip(*losses, strict=True))
        return sums, counts, told

    return balancing.Split(trunk, readout)
