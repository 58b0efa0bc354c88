"""Speech and text recognition: connectionist temporal classification over tokens in time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mtmm_jax.batch import Spec
from mtmm_jax.ranges import Beam
from mtmm_jax.tasks.ctc import BLANK, beam_search, ctc, greedy
from mtmm_jax.tasks.metrics.edit_distance import detokenizer, text_errors
from mtmm_jax.tasks.task import Labels, Task, find_target, masked
from mtmm_jax.tasks.traits import Traits

SHOWN = 5


def recognition(
    name: str,
    spec: Spec,
    *,
    make_head: Any,
    where: str,
    reads: str | Iterable[str] = "fused",
    target: str | None = None,
    head: str | Mapping[str, Any] = "ctc",
    beam: Beam = 16,
) -> Task:
    """-1/n log sum_{paths that give y} prod_t p(path_t), n the symbols of y.

    A label that its frames are too few for (each symbol needs one, and one more between equal
    neighbours) counts in the metrics and not in the loss. Metrics are of the greedy reading.

    Paper: Graves et al. 2006. Costs frames x symbols of the label, one frame after the other. Use
    it: for speech, lines of text, any label in the order of the input. Not: where the order differs
    (`captioning`).

    Args:
        name, spec, make_head, where: given by the model.
        reads: what the head reads.
        target: the label's name, of kind "tokens"; the task's own name by default.
        head: an entry of `heads.HEADS`.
        beam: how many beginnings of texts are weighed when a person asks.
    """
    target, label = find_target(name, target, "tokens", spec, where)
    size = len(label.classes)
    text = detokenizer(label.classes)

    def loss(prediction: dict[str, jax.Array], labels: Labels, axis_name: str | None):
        del axis_name
        logits = prediction["logits"]
        if labels.y is None:
            return masked(logits[:, 0, 0], labels.weight)
        y = jnp.where(labels.weight[:, None] > 0, jnp.clip(labels.y, 0, size - 1), BLANK)
        each, fits = ctc(logits, prediction["mask"], y)
        each = each / jnp.maximum((y != BLANK).sum(1), 1).astype(each.dtype)
        return masked(each, jnp.where(fits, labels.weight, 0.0))

    def decode(prediction: dict[str, Any]) -> dict[str, Any]:
        logits = np.asarray(prediction["logits"], np.float64)[np.asarray(prediction["mask"], bool)]
        logits = logits - logits.max(-1, keepdims=True, initial=0.0)
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        best: dict[str, float] = {}
        for ids, value in beam_search(log_p, beam, SHOWN):
            best.setdefault(text(ids), float(np.exp(value)))
        return {"prediction": next(iter(best)), "best": best}

    def outputs(prediction: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """The greedy reading, and the frames' probabilities for a beam search."""
        logits, mask = prediction["logits"], prediction["mask"]
        return {"ids": greedy(logits, mask), "probability": jax.nn.softmax(logits), "mask": mask}

    def restore(outputs: Mapping[str, Any]) -> dict[str, Any]:
        logits = np.log(np.maximum(outputs["probability"], 1e-30))
        return {"logits": logits, "mask": outputs["mask"]}

    silence = np.zeros((1, size), np.float32)
    silence[:, BLANK] = 1.0
    return Task(
        name=name,
        kind="recognition",
        reads=reads,
        target=target,
        head=make_head(head, where=f"{where}.head", size=size, length=label.length),
        loss=loss,
        metrics={"errors": text_errors(lambda p: greedy(p["logits"], p["mask"]), label.classes)},
        headline="cer",
        decode=decode,
        trivial={"logits": silence, "mask": np.ones(1, bool)},
        smaller=("cer", "wer"),
        outputs=outputs,
        restore=restore,
        explained=None,
        traits=Traits(transcribes=True),
    )
