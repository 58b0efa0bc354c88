"""A text, token by token: captions, and speech recognition by attention."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mtmm_jax.batch import Spec
from mtmm_jax.ranges import Decay
from mtmm_jax.tasks.metrics.edit_distance import detokenizer, text_errors
from mtmm_jax.tasks.metrics.monoids import Metric, add
from mtmm_jax.tasks.task import Labels, Task, find_target, masked

END = 0


def captioning(
    name: str,
    spec: Spec,
    *,
    make_head: Any,
    where: str,
    reads: str | Iterable[str] = "fused",
    target: str | None = None,
    head: str | Mapping[str, Any] = "decoder",
    label_smoothing: Decay = 0.0,
) -> Task:
    """-1/(n + 1) sum_{i <= n + 1} log p(y_i | y_1 .. y_{i-1}, x), y_{n+1} the end.

    The head writes greedily in predictions; the loss, and the metric `token_accuracy`, give it the
    label's own beginning at each place (teacher forcing).

    Paper: Vinyals et al. 2015, arXiv:1411.4555. Costs the vocabulary once a token. Use it: for
    texts of any length about any input. Not: for a fixed set of answers (`classification`).

    Args:
        name, spec, make_head, where: given by the model.
        reads: what the head reads.
        target: the label's name, of kind "tokens"; the task's own name by default.
        head: an entry of `heads.HEADS`.
        label_smoothing: the share of each token's label that is uniform.
    """
    target, label = find_target(name, target, "tokens", spec, where)
    size, length = len(label.classes), label.length
    text = detokenizer(label.classes)

    def lesson(labels: Labels) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The labels, the same with the end, and a mask `[B, length + 1]` of the tokens that
        count."""
        y = jnp.where(labels.weight[:, None] > 0, jnp.clip(labels.y, 0, size - 1), END)
        y = jnp.where(jnp.cumsum(y == END, axis=1) > 0, END, y)
        counted = jnp.pad(y != END, ((0, 0), (1, 0)), constant_values=True)
        return y, jnp.pad(y, ((0, 0), (0, 1)), constant_values=END), counted

    def loss(prediction: dict[str, Any], labels: Labels, axis_name: str | None):
        del axis_name
        if labels.y is None:
            return masked(prediction["score"], labels.weight)
        y, wanted, counted = lesson(labels)
        logits = prediction["method"]("teach", prediction["memory"], prediction["mask"], y)
        log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
        own = jnp.take_along_axis(log_p, wanted[..., None], axis=-1)[..., 0]
        each = (1.0 - label_smoothing) * own + label_smoothing * log_p.mean(-1)
        return masked(
            -jnp.where(counted, each, 0.0).sum(1) / counted.sum(1).astype(jnp.float32),
            labels.weight,
        )

    def hits(prediction: dict[str, Any], labels: Labels) -> dict[str, jax.Array]:
        if labels.y is None:
            return {"hits": jnp.zeros(()), "count": jnp.zeros(())}
        y, wanted, counted = lesson(labels)
        if "method" in prediction:
            logits = prediction["method"]("teach", prediction["memory"], prediction["mask"], y)
            guess = logits.argmax(-1)
        else:
            guess = jnp.pad(prediction["ids"], ((0, 0), (0, 1)))
        weight = jnp.where(counted, labels.weight[:, None], 0.0)
        return {"hits": jnp.where(guess == wanted, weight, 0.0).sum(), "count": weight.sum()}

    def accuracy(state: dict[str, Any]) -> dict[str, float]:
        count = float(state["count"])
        return {"token_accuracy": float(state["hits"]) / count if count else float("nan")}

    def decode(prediction: dict[str, Any]) -> dict[str, Any]:
        counted = text(prediction["ids"])
        return {"prediction": counted, "best": {counted: float(np.exp(prediction["score"]))}}

    def decode_outputs(outputs: Mapping[str, Any]) -> dict[str, Any]:
        counted = text(outputs["ids"])
        return {"prediction": counted, "best": {counted: float(outputs["probability"])}}

    def outputs(prediction: dict[str, Any]) -> dict[str, jax.Array]:
        return {"ids": prediction["ids"], "probability": jnp.exp(prediction["score"])}

    return Task(
        name=name,
        kind="captioning",
        reads=reads,
        target=target,
        head=make_head(head, where=f"{where}.head", size=size, length=length),
        loss=loss,
        metrics={
            "errors": text_errors(lambda prediction: prediction["ids"], label.classes),
            "tokens": Metric(hits, add, accuracy),
        },
        headline="cer",
        decode=decode,
        trivial={"ids": np.zeros(length, np.int32), "score": np.float32(0.0)},
        smaller=("cer", "wer"),
        outputs=outputs,
        decode_outputs=decode_outputs,
        explained=None,
    )
