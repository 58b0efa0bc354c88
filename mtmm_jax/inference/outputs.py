"""Predictions in the user's units, under `jit`: probabilities, unscaled numbers, boxes, embeddings.

What `Task.decode` tells a person of one sample on the host, these tell a program of a batch on the
device.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from mtmm_jax import registry
from mtmm_jax.batch import choose_all
from mtmm_jax.model import Model
from mtmm_jax.tasks.ctc import greedy
from mtmm_jax.tasks.ordinal import log_probabilities
from mtmm_jax.tasks.regression import LOSSES
from mtmm_jax.tasks.synthesis import _MIDDLE, _SPREAD
from mtmm_jax.tasks.task import Task


@dataclasses.dataclass(frozen=True)
class Asked:
    """What units are told of a task: itself, its label and its entry in the config."""

    task: Task
    label: Any
    config: Mapping[str, Any]


def _classes(z: jax.Array, asked: Asked) -> dict[str, jax.Array]:
    del asked
    return {"probability": jax.nn.softmax(z)}


def _labels(z: jax.Array, asked: Asked) -> dict[str, jax.Array]:
    del asked
    return {"probability": jax.nn.sigmoid(z)}


def _levels(above: jax.Array, asked: Asked) -> dict[str, jax.Array]:
    del asked
    level = (above > 0).sum(-1).astype(jnp.int32)
    return {"probability": jnp.exp(log_probabilities(above)), "level": level}


def _number(z: jax.Array, asked: Asked) -> dict[str, jax.Array]:
    """With a Gaussian loss also how sure it is, one standard deviation."""
    error = registry.build(LOSSES, asked.config.get("loss", "mse"), where="loss")
    z = error.refine(z)
    told = {"value": z[:, 0] * asked.label.std + asked.label.mean}
    if error.size == 2:
        told["std"] = asked.label.std * jnp.exp(0.5 * z[:, 1])
    return told


def _vectors(prediction: Any, asked: Asked) -> dict[str, jax.Array]:
    return {read: prediction["vectors"][read] for read in asked.task.reads}


def _boxes(prediction: Any, asked: Asked) -> dict[str, jax.Array]:
    """The surest boxes in falling order; `shown` are those that predict tells of."""
    detect, _, threshold = asked.task.decode.args
    boxes, scores, classes, alone = detect(prediction)
    return {
        "boxes": boxes,
        "score": scores,
        "class": classes.astype(jnp.int32),
        "shown": alone & (scores >= threshold),
    }


def _mask(z: jax.Array, asked: Asked) -> dict[str, jax.Array]:
    del asked
    return {"mask": z.argmax(-1).astype(jnp.int32), "probability": jax.nn.softmax(z)}


def _path(z: jax.Array, asked: Asked) -> dict[str, jax.Array]:
    label = asked.label
    return {"points": z.reshape(z.shape[0], *label.shape) * label.std + label.mean}


def _values(prediction: Any, asked: Asked) -> dict[str, jax.Array]:
    z = prediction["values"] if isinstance(prediction, Mapping) else prediction
    return {"values": z.reshape(z.shape[0], *asked.task.form)}


def _symbols(prediction: Any, asked: Asked) -> dict[str, jax.Array]:
    """The greedy reading, and the frames' probabilities for a beam search."""
    del asked
    logits, mask = prediction["logits"], prediction["mask"]
    return {"ids": greedy(logits, mask), "probability": jax.nn.softmax(logits), "mask": mask}


def _words(prediction: Any, asked: Asked) -> dict[str, jax.Array]:
    del asked
    return {"ids": prediction["ids"], "probability": jnp.exp(prediction["score"])}


def _speech(prediction: Any, asked: Asked) -> dict[str, jax.Array]:
    """The logarithms of mel power; a wave is made of them on the host."""
    del asked
    return {"log_mel": prediction["mel"] * _SPREAD + _MIDDLE, "frames": prediction["frames"]}


# Kind of task -> what its head says, in the units of its label.
UNITS: dict[str, Callable[[Any, Asked], dict[str, jax.Array]]] = {
    "classification": _classes,
    "multilabel": _labels,
    "ordinal": _levels,
    "regression": _number,
    "retrieval": _vectors,
    "detection": _boxes,
    "segmentation": _mask,
    "waypoints": _path,
    "reconstruction": _values,
    "words": _classes,
    "recognition": _symbols,
    "captioning": _words,
    "synthesis": _speech,
}


def answers(
    model: Model, configs: Mapping[str, Any], tasks: Sequence[str] | None = None
) -> Callable[[Any, Mapping[str, Any]], dict[str, dict[str, jax.Array]]]:
    """`(variables, inputs) -> {task: {output: [B, ...], "present": [B]}}`, in the label's units.

    Pure, for `jit`. `present` is whether all that the task reads is there, of a fusion anything:
    where it is not, the other outputs mean nothing; of retrieval the embeddings that are there do.

    Args:
        model: the model.
        configs: the config's `tasks`; what training adds to them is not asked.
        tasks: those to tell; all by default.
    """
    chosen = [name for name in model.tasks if name in configs]
    choose_all(tasks or (), chosen, "--tasks", "task")
    asked = {}
    for name in tasks or chosen:
        task = model.tasks[name]
        registry.choose(task.kind, UNITS, f"tasks.{name}.kind", "kind of task to export")
        label = None if task.target is None else model.spec.targets[task.target]
        asked[name] = Asked(task, label, registry.entry_of(configs[name]))

    def predict(variables: Any, inputs: Mapping[str, Any]) -> dict[str, dict[str, jax.Array]]:
        predictions, _ = model(variables, inputs)
        present = model.present({"inputs": inputs})
        return {
            name: {
                **UNITS[one.task.kind](_in_float32(predictions[name]), one),
                "present": jnp.stack([present[read] for read in one.task.reads]).all(0),
            }
            for name, one in asked.items()
        }

    return predict


def _in_float32(prediction: Any) -> Any:
    return jax.tree.map(
        lambda x: x.astype(jnp.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x, prediction
    )
