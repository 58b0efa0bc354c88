"""The second half of a model: sharing and heads, or a head for each modality and their decision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mtmm_jax.batch import Tokens
from mtmm_jax.layers import Run
from mtmm_jax.registry import ConfigError
from mtmm_jax.tasks.task import FUSED, Task, modalities_of

if TYPE_CHECKING:
    from mtmm_jax.model.model import Model


def readout(model: Model, run: Run, shared: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Task -> prediction, each from its own copy of what crossed the cut."""
    # Sharing takes the copies of its own tasks: towers of others would mix into their features.
    entrances = {name: entrance(task) for name, task in model.tasks.items()}
    copies = {name: shared[name][read] for name, read in entrances.items() if read in shared[name]}
    own = run("sharing", model.sharing, copies) if copies else {}
    predictions = {}
    for name, task in model.tasks.items():
        if name in model.decisions:
            predictions[name] = _decide(model, run, name, shared[name])
            continue
        read = {r: shared[name][r] for r in task.reads}
        if name in own:
            read[entrances[name]] = own[name]
        if name in model.probes:
            read = {r: t.replace_values(lax.stop_gradient(t.values)) for r, t in read.items()}
        read = _reversed(model, run, name, read)
        predictions[name] = run(f"heads/{name}", task.head, read)
    return predictions


def entrance(task: Task) -> str | None:
    """The read with which a task may pass the sharing: "fused", or the only one that it has."""
    if FUSED in task.reads:
        return FUSED
    return task.reads[0] if len(task.reads) == 1 else None


def _reversed(model: Model, run: Run, name: str, read: dict[str, Tokens]) -> dict[str, Tokens]:
    """What a head reads; the gradient that it sends back is turned round where it is to."""
    reversal = model.tasks[name].reversal
    if reversal is None:
        return read
    values = {r: t.values for r, t in read.items()}
    turned = run(f"heads/{name}/reversal", reversal, values)
    return {r: t.replace_values(turned[r]) for r, t in read.items()}


def _decide(model: Model, run: Run, name: str, shared: Mapping[str, Tokens]) -> Any:
    """A task's prediction from each modality's own, by its own head."""
    (read,) = model.tasks[name].reads
    values, present = [], []
    for modality in modalities_of(read, model.encoders):
        (tokens,) = _reversed(model, run, name, {read: shared[f"{read}/{modality}"]}).values()
        alone = run(f"heads/{name}/{modality}", model.tasks[name].head, {read: tokens})
        flat, rebuild = _flattened(alone, name)
        values.append(flat)
        present.append(tokens.present)
    stacked = jnp.stack(values, axis=1), jnp.stack(present, axis=1)
    return rebuild(run(f"heads/{name}/decision", model.decisions[name], *stacked))


def _flattened(prediction: Any, task: str) -> tuple[jax.Array, Any]:
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
