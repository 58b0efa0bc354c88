"""Intelligibility of synthesised speech, by the recogniser of the same model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mtmm_jax.batch import Batch
from mtmm_jax.model import Model
from mtmm_jax.registry import ConfigError
from mtmm_jax.tasks.task import Labels


def find_tasks(model: Model) -> tuple[str, str]:
    """The names of the model's tasks that speak, and that write down what they hear."""
    speaking = [name for name, task in model.tasks.items() if task.speech is not None]
    writing = [name for name, task in model.tasks.items() if task.traits.transcribes]
    for names, does, such in (
        (speaking, "speaks", "synthesis"),
        (writing, "writes down what is said", "recognition"),
    ):
        if not names:
            raise ConfigError(f"tasks: none {does}; the round trip needs one, such as a {such!r}")
    return speaking[0], writing[0]


def round_trip(
    model: Model, variables: Any, batches: Iterable[Batch], listener: str = "audio"
) -> tuple[dict[str, dict[str, float]], list[tuple[int, np.ndarray]]]:
    """Texts are spoken, each in the voice of its recording, and written down again.

    Frames become waves by Griffin-Lim, so the recogniser hears what a person would.

    Args:
        model: with a synthesis and a recognition task.
        variables: its parameters.
        batches: with the texts, the recordings and both tasks' labels.
        listener: the modality of the recordings.

    Returns:
        The recogniser's metrics on `recorded`, `resynthesised` (the recording's own frames, through
        Griffin-Lim: what that alone costs) and `synthesised` speech; and the synthesised waves,
        with the ids of their rows.
    """
    speak, write = find_tasks(model)
    speaking, writing = model.tasks[speak], model.tasks[write]
    metric = writing.metrics["errors"]

    @jax.jit
    def say(variables: Any, batch: Batch) -> tuple[Any, Any, Any, Any]:
        predictions, _ = model(variables, batch["inputs"])
        present = model.present(batch)
        spoken = speaking.labels(batch, present)
        frames = speaking.speech.say(predictions[speak], spoken.y["speaker"])
        written = writing.labels(batch, present)
        weight = jnp.minimum(spoken.weight, written.weight)
        return frames, speaking.speech.heard(spoken), written.y, weight

    @jax.jit
    def hear(variables: Any, batch: Batch, wave: jax.Array, y: jax.Array, weight: Any) -> Any:
        entry = {"x": wave, "present": jnp.ones(len(wave), bool)}
        predictions, _ = model(variables, {**batch["inputs"], listener: entry})
        return metric.update(predictions[write], Labels(y, weight))

    states: dict[str, Any] = {}
    waves: list[tuple[int, np.ndarray]] = []
    for batch in batches:
        synthesised, recorded, written, weight = jax.device_get(say(variables, batch))
        own = np.asarray(batch["inputs"][listener]["x"])
        heard = {"recorded": own}
        for name, (mel, count) in (("resynthesised", recorded[:2]), ("synthesised", synthesised)):
            rows = zip(mel, count, weight, strict=True)
            each = [speaking.speech.listen(m, n) if w > 0 else np.zeros(1) for m, n, w in rows]
            heard[name] = _fitted(each, own.shape[1])
            if name == "synthesised":
                ids = np.asarray(batch["id"]).tolist()
                rows = zip(ids, each, weight, strict=True)
                waves += [(id, wave) for id, wave, w in rows if w > 0]
        for name, wave in heard.items():
            state = jax.device_get(hear(variables, batch, wave, written, weight))
            states[name] = metric.merge(states[name], state) if name in states else state
    return {name: metric.compute(state) for name, state in states.items()}, waves


def _fitted(waves: list[np.ndarray], length: int) -> np.ndarray:
    out = np.zeros((len(waves), length), np.float32)
    for row, wave in zip(out, waves, strict=True):
        row[: len(wave)] = wave[:length]
    return out
