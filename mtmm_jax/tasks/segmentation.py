"""A class for every pixel: softmax cross-entropy, mean intersection over union."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mtmm_jax.batch import Spec
from mtmm_jax.fusion import FUSIONS
from mtmm_jax.tasks.metrics import monoids as metrics
from mtmm_jax.tasks.task import Labels, Task, find_target, masked
from mtmm_jax.tasks.traits import Traits, confusion_drawing


def segmentation(
    name: str,
    spec: Spec,
    *,
    make_head: Any,
    where: str,
    reads: str | Iterable[str] = "fused",
    target: str | None = None,
    head: str | Mapping[str, Any] = "pixels",
) -> Task:
    """A picture's loss is the mean of -log softmax(z)_y over its pixels whose class is known.

    A picture without such a pixel does not count.

    Paper: Long et al. 2015, arXiv:1411.4038. Costs C numbers a pixel. Use it: for a class at each
    pixel. Not: where boxes are enough.

    Args:
        name, spec, make_head, where: given by the model.
        reads: what the head reads; its tokens must still have the image's grid.
        target: the label's name; the task's own name by default.
        head: an entry of `heads.HEADS` that gives `[B, H, W, classes]`.
    """
    target, label = find_target(name, target, "mask", spec, where)
    classes = label.classes
    keeping = tuple(k for k, fusion in FUSIONS.items() if fusion.keeps_layout)
    module = make_head(
        head, where=f"{where}.head", size=len(classes), shape=label.shape, fusions=keeping
    )

    def loss(logits: jax.Array, labels: Labels, axis_name: str | None):
        del axis_name
        log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
        if labels.y is None:
            return masked(log_p[:, 0, 0, 0], labels.weight)
        known = labels.y >= 0
        y = jnp.clip(labels.y, 0, len(classes) - 1)
        own = jnp.take_along_axis(log_p, y[..., None], axis=-1)[..., 0]
        count = known.sum((1, 2))
        mean = jnp.where(known, -own, 0.0).sum((1, 2)) / jnp.maximum(count, 1).astype(jnp.float32)
        return masked(mean, jnp.where(count > 0, labels.weight, 0.0))

    def decode(logits: np.ndarray) -> dict[str, Any]:
        mask = logits.argmax(-1)
        shares = np.bincount(mask.ravel(), minlength=len(classes)) / mask.size
        order = [i for i in np.argsort(-shares, kind="stable") if shares[i] > 0]
        return {"best": {classes[i]: float(shares[i]) for i in order}, "mask": mask.tolist()}

    def outputs(z: jax.Array) -> dict[str, jax.Array]:
        return {"mask": z.argmax(-1).astype(jnp.int32), "probability": jax.nn.softmax(z)}

    frequencies = np.log(np.maximum(label.frequencies or (1.0,) * len(classes), 1e-9))
    everywhere = np.broadcast_to(frequencies.astype(np.float32), (*label.shape, len(classes)))
    return Task(
        name=name,
        kind="segmentation",
        reads=reads,
        target=target,
        head=module,
        loss=loss,
        metrics={"confusion": pixel_confusion(len(classes))},
        headline="miou",
        decode=decode,
        trivial=everywhere,
        outputs=outputs,
        restore=lambda outputs: np.log(np.maximum(outputs["probability"], 1e-30)),
        explained=None,
        drawing=confusion_drawing,
        traits=Traits(averages=True),
    )


def pixel_confusion(classes: int) -> metrics.Metric:
    """miou and pixel_accuracy, from counts `[true, predicted]` of the pixels that are known.

    A class' intersection over union is of all its pixels in the split; the mean is over the classes
    that occur or are said.
    """

    def update(logits: jax.Array, labels: Any) -> jax.Array:
        guess = logits.argmax(-1)
        y = jnp.full_like(guess, -1) if labels.y is None else labels.y
        weight = jnp.where(y >= 0, labels.weight[:, None, None], 0.0)
        y = jnp.clip(y, 0, classes - 1)
        return jnp.zeros((classes, classes), jnp.float32).at[y, guess].add(weight)

    def compute(counts: np.ndarray) -> dict[str, float]:
        counts = np.asarray(counts, np.float64)
        hits, union = np.diag(counts), counts.sum(0) + counts.sum(1) - np.diag(counts)
        seen, total = union > 0, counts.sum()
        if not total > 0:
            return {"miou": float("nan"), "pixel_accuracy": float("nan")}
        return {
            "miou": float((hits[seen] / union[seen]).mean()),
            "pixel_accuracy": float(hits.sum() / total),
        }

    def intervals(counts: np.ndarray) -> dict[str, Any]:
        del counts
        return dict.fromkeys(("miou", "pixel_accuracy"), "pixels of one picture are no examples")

    return metrics.Metric(update, metrics.add, compute, intervals)
