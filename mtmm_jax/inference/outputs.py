"""A model's predictions in the labels' units, under `jit`: `Task.outputs` of all tasks.

What `Task.decode` gives a person of one sample on the host, these give a program of a batch on the
device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from mtmm_jax.batch import choose_all
from mtmm_jax.model import Model


def answers(
    model: Model, configs: Mapping[str, Any], tasks: Sequence[str] | None = None
) -> Callable[[Any, Mapping[str, Any]], dict[str, dict[str, jax.Array]]]:
    """`(variables, inputs) -> {task: {output: [B, ...], "present": [B]}}`, in the label's units.

    Pure, for `jit`. `present` is whether all that the task reads is there, of a fusion anything:
    where it is not, the other outputs mean nothing; of retrieval the embeddings that are there do.

    Args:
        model: the model.
        configs: the config's `tasks`; what training adds to them is left out.
        tasks: those to tell; all by default.
    """
    chosen = [name for name in model.tasks if name in configs]
    choose_all(tasks or (), chosen, "--tasks", "task")
    selected = {name: model.tasks[name] for name in tasks or chosen}

    def predict(variables: Any, inputs: Mapping[str, Any]) -> dict[str, dict[str, jax.Array]]:
        predictions, _ = model(variables, inputs)
        present = model.present({"inputs": inputs})
        return {
            name: {
                **task.outputs(_in_float32(predictions[name])),
                "present": jnp.stack([present[read] for read in task.reads]).all(0),
            }
            for name, task in selected.items()
        }

    return predict


def _in_float32(prediction: Any) -> Any:
    return jax.tree.map(
        lambda x: x.astype(jnp.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x, prediction
    )
