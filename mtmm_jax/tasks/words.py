"""Prediction of a text's words: from the model's features of it, from the words it sees, from the
others."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mtmm_jax.batch import Spec
from mtmm_jax.ranges import Decay, Size
from mtmm_jax.registry import ConfigError, choose
from mtmm_jax.tasks.hidden import OfInput
from mtmm_jax.tasks.hidden import check as check_hidden
from mtmm_jax.tasks.metrics import monoids as metrics
from mtmm_jax.tasks.metrics.intervals import of_mean, transformed
from mtmm_jax.tasks.task import Labels, Task, masked
from mtmm_jax.tasks.traits import Traits

LISTED = 10  # words that a prediction lists


@dataclasses.dataclass(frozen=True)
class Words(OfInput):
    """`y` is `{"ids": [B, N], "known": [B, N]}`."""

    def said(self, entry: Mapping[str, Any], gone: jax.Array | None) -> dict[str, jax.Array]:
        known = entry["present"][:, None] & entry.get("mask", jnp.ones(entry["x"].shape, bool))
        if gone is not None:
            known = known & gone
        return {"ids": jnp.where(known, entry["x"], 0), "known": known}


def words(
    name: str,
    spec: Spec,
    *,
    make_head: Any,
    where: str,
    reads: str | Iterable[str] = "fused",
    modality: str | None = None,
    head: str | Mapping[str, Any] = "vector",
    hide: Decay = 0.0,
    patch: Size = 1,
) -> Task:
    """-mean_i log softmax(z)_{w_i} over the words w_i of a text: one distribution for all of them.

    With `hide` it is masked modelling: words that stand together in texts, or with a picture, come
    to lie together. With `model.modality_dropout` they have to come from the other modalities where
    fusion did not see the text. A bag of words, as the head gives one vector: without their order.

    Paper: Le and Mikolov 2014, arXiv:1405.4053. Costs the vocabulary once a text. Use it: to learn
    from texts without labels. Not: for text that is to be read (`captioning`).

    Args:
        name, spec, make_head, where: given by the model.
        reads: what the head reads.
        modality: a text; the task's own name by default.
        head: an entry of `heads.HEADS` that gives a vector.
        hide: the share of the text that the model does not see in training; only that is then
            scored (`tasks.hidden`).
        patch: how many neighbours are hidden together.
    """
    modality = modality or name
    texts = [key for key, value in spec.modalities.items() if value.is_a("text")]
    if not texts:
        raise ConfigError(f"{where}: the data has no text")
    choose(modality, texts, f"{where}.modality", "text")
    text = spec.modalities[modality]
    check_hidden(text, hide, patch, where)
    size = text.vocabulary

    def loss(prediction: jax.Array, labels: Labels, axis_name: str | None):
        del axis_name
        if labels.y is None:
            return masked(prediction[:, 0].astype(jnp.float32), labels.weight)
        return masked(_surprise(prediction, labels.y), labels.weight)

    def decode(prediction: np.ndarray) -> dict[str, Any]:
        z = np.asarray(prediction, np.float64)
        p = np.exp(z - z.max())
        best = np.argsort(-z, kind="stable")[:LISTED]
        return {"best": {str(i): float(p[i] / p.sum()) for i in best}}  # ids; a run has their words

    return Words(
        name=name,
        kind="words",
        reads=reads,
        target=None,
        head=make_head(head, where=f"{where}.head", size=size),
        loss=loss,
        metrics={"words": recall(min(LISTED, size))},
        headline=f"recall@{LISTED}",
        decode=decode,
        trivial=np.zeros(size, np.float32),
        smaller=("perplexity",),
        outputs=lambda z: {"probability": jax.nn.softmax(z)},
        restore=lambda outputs: np.log(np.maximum(outputs["probability"], 1e-30)),
        explained=None,
        traits=Traits(vocabulary_of=modality),
        modality=modality,
        hide=hide,
        patch=patch,
    )


def _surprise(z: jax.Array, y: Mapping[str, jax.Array]) -> jax.Array:
    """`[B]`: the mean of -log p over the known words of each row."""
    known = y["known"]
    log_likelihood = jnp.take_along_axis(
        jax.nn.log_softmax(z.astype(jnp.float32)), y["ids"], axis=1
    )
    total = jnp.where(known, -log_likelihood, 0.0).sum(1)
    return total / jnp.maximum(known.sum(1), 1).astype(jnp.float32)


def recall(k: int) -> metrics.Metric:
    """recall@10, the share of a text's words among the k likeliest, and perplexity, means over
    rows."""

    def update(z: jax.Array, labels: Labels) -> dict[str, jax.Array]:
        if labels.y is None:
            keys = ("count", "found", "found_squared", "surprise", "surprise_squared")
            return dict.fromkeys(keys, jnp.zeros(()))
        known = labels.y["known"]
        best = jax.lax.top_k(z.astype(jnp.float32), k)[1]
        hit = (labels.y["ids"][..., None] == best[:, None]).any(-1) & known
        share = hit.sum(1) / jnp.maximum(known.sum(1), 1)
        values = {"found": share.astype(jnp.float32), "surprise": _surprise(z, labels.y)}
        values |= {f"{key}_squared": jnp.square(x) for key, x in values.items()}
        sums = {key: masked(x, labels.weight)[0] for key, x in values.items()}
        return {"count": labels.weight.sum(), **sums}

    def compute(state: dict[str, Any]) -> dict[str, float]:
        count, found, surprise = (float(state[key]) for key in ("count", "found", "surprise"))
        if not count:
            return {f"recall@{LISTED}": float("nan"), "perplexity": float("nan")}
        return {f"recall@{LISTED}": found / count, "perplexity": float(np.exp(surprise / count))}

    def intervals(state: dict[str, Any]) -> dict[str, Any]:
        s = {key: float(value) for key, value in state.items()}
        share = of_mean(s["found"], s["found_squared"], s["count"], low=0.0, high=1.0)
        surprise = of_mean(s["surprise"], s["surprise_squared"], s["count"])
        return {
            f"recall@{LISTED}": share,
            "perplexity": transformed(surprise, lambda x: float(np.exp(x))),
        }

    return metrics.Metric(update, metrics.add, compute, intervals)
