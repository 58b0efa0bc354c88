"""Reconstruction of a modality, from the model's features of it, or from the others alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mtmm_jax.batch import Modality, Spec
from mtmm_jax.ranges import Decay, Size
from mtmm_jax.registry import ConfigError, choose
from mtmm_jax.tasks.adversarial import adversarial as against_critic
from mtmm_jax.tasks.hidden import OfInput
from mtmm_jax.tasks.hidden import check as check_hidden
from mtmm_jax.tasks.metrics import monoids as metrics
from mtmm_jax.tasks.task import Labels, Task, masked

KINDS = ("image", "table", "series")


@dataclasses.dataclass(frozen=True)
class Reconstruction(OfInput):
    """`y` is `{"values": [B, F], "known": [B, F]}`.

    Attributes:
        form: of the values that are to be said, without the batch.
    """

    form: tuple[int, ...] = ()

    def said(self, entry: Mapping[str, Any], gone: jax.Array | None) -> dict[str, jax.Array]:
        x = jnp.asarray(entry["x"], jnp.float32)
        here = jnp.asarray(entry["present"]).reshape(-1, *(1,) * (x.ndim - 1))
        mask = jnp.asarray(entry.get("mask", jnp.ones(x.shape[:2], bool)))
        known = here & mask.reshape(*mask.shape, *(1,) * (x.ndim - 2))
        known = jnp.broadcast_to(known, x.shape)
        x = jnp.where(known, x, 0.0)
        if x.shape[1:] != self.form:
            x = jax.image.resize(x, (x.shape[0], *self.form), "linear")
            known = jnp.broadcast_to(here, x.shape)
        if gone is not None:
            known = known & _at_values(gone, x.shape)
        return {"values": x.reshape(len(x), -1), "known": known.reshape(len(x), -1)}


def reconstruction(
    name: str,
    spec: Spec,
    *,
    make_head: Any,
    where: str,
    reads: str | Iterable[str] = "fused",
    modality: str | None = None,
    size: Size = 16,
    head: str | Mapping[str, Any] = "vector",
    hide: Decay = 0.0,
    patch: Size = 8,
    adversarial: bool | Mapping[str, Any] = False,
) -> Task:
    """1/2 mean_f (z_f - x_f)^2 over the values x of a modality that are known.

    From "fused" with `model.modality_dropout` it is masked modelling by whole modalities: where
    fusion did not see this one, it has to come from the others. Read by others only, it is
    translation; read from itself through a pooled vector, an autoencoder. With `hide` it is masked
    modelling within the modality.

    Paper: He et al. 2022, arXiv:2111.06377. Costs one number a value. Use it: to learn from rows
    without labels, and for inputs that may be absent. Not: as a metric; it weighs what is easy to
    see.

    Args:
        name, spec, make_head, where: given by the model.
        reads: what the head reads.
        modality: an image, a table or a series; the task's own name by default.
        size: side of the picture that is to be said, if that is smaller than the image's.
        head: an entry of `heads.HEADS` that gives a vector.
        hide: the share of the modality that the model does not see in training; only that is then
            scored (`tasks.hidden`).
        patch: pixels of a hidden patch's side, or steps of a series; a table hides columns.
        adversarial: whether a critic discriminates reconstructions from data, and how
            (`tasks.adversarial`).
    """
    modality = modality or name
    choose(modality, spec.modalities, f"{where}.modality", "modality")
    check_hidden(spec.modalities[modality], hide, patch, where)
    form = _form(spec.modalities[modality], size, where)
    count = int(np.prod(form))

    def loss(prediction: jax.Array, labels: Labels, axis_name: str | None):
        del axis_name
        z = prediction.astype(jnp.float32)
        if labels.y is None:
            return masked(z[:, 0], labels.weight)
        known = labels.y["known"]
        squared = jnp.where(known, 0.5 * jnp.square(z - labels.y["values"]), 0.0)
        mean = squared.sum(1) / jnp.maximum(known.sum(1), 1).astype(jnp.float32)
        return masked(mean, labels.weight)

    def decode(prediction: np.ndarray) -> dict[str, Any]:
        return {"values": np.asarray(prediction, np.float64).reshape(form).round(4).tolist()}

    task = Reconstruction(
        name=name,
        kind="reconstruction",
        reads=reads,
        target=None,
        head=make_head(head, where=f"{where}.head", size=count),
        loss=loss,
        metrics={"errors": explained(count)},
        headline="r2",
        decode=decode,
        trivial=np.zeros(count, np.float32),
        smaller=("mse",),
        outputs=lambda z: {"values": z.reshape(z.shape[0], *form)},
        restore=lambda outputs: outputs["values"].reshape(len(outputs["values"]), -1),
        explained=None,
        modality=modality,
        form=form,
        hide=hide,
        patch=patch,
    )
    if adversarial is False or adversarial is None:
        return task
    return against_critic(task, adversarial, f"{where}.adversarial")


def _at_values(gone: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The mask of hidden values, at the places of the values to be predicted."""
    places = shape[: gone.ndim]
    if gone.shape != places:
        gone = jax.image.resize(gone.astype(jnp.float32), places, "nearest") > 0.5
    return jnp.broadcast_to(gone.reshape(*places, *[1] * (len(shape) - gone.ndim)), shape)


def _form(modality: Modality, size: int, where: str) -> tuple[int, ...]:
    if not modality.is_a(*KINDS):
        raise ConfigError(
            f"{where}.modality: unknown kind of modality {modality.kind!r}; choices: "
            f"{', '.join(sorted(KINDS))}"
        )
    if None in modality.shape:
        raise ConfigError(f"{where}.modality: lengths vary ({modality.shape}); needs a fixed one")
    if not modality.is_a("image"):
        return tuple(modality.shape)
    height, width, channels = modality.shape
    return (min(size, height), min(size, width), channels)


def explained(count: int) -> metrics.Metric:
    """r2 and mse over all values: 1 - squared errors / squared distances from each value's mean.

    Means and distances merge by Chan's formula, so that large means cost no precision.

    Args:
        count: of the values of a row.
    """

    def update(prediction: jax.Array, labels: Any) -> dict[str, jax.Array]:
        if labels.y is None:
            return dict.fromkeys(("count", "mean", "spread", "squared"), jnp.zeros(count))
        weight = jnp.where(labels.y["known"], labels.weight[:, None], 0.0)
        x = jnp.where(weight > 0, labels.y["values"], 0.0)
        total = weight.sum(0)
        mean = (weight * x).sum(0) / jnp.where(total > 0, total, 1.0)
        error = jnp.where(weight > 0, prediction.astype(jnp.float32) - x, 0.0)
        return {
            "count": total,
            "mean": mean,
            "spread": (weight * jnp.square(x - mean)).sum(0),
            "squared": (weight * jnp.square(error)).sum(0),
        }

    def merge(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
        a, b = ({k: np.asarray(v, np.float64) for k, v in s.items()} for s in (a, b))
        total = a["count"] + b["count"]
        share = b["count"] / np.where(total > 0, total, 1.0)
        gap = b["mean"] - a["mean"]
        return {
            "count": total,
            "mean": a["mean"] + share * gap,
            "spread": a["spread"] + b["spread"] + gap**2 * a["count"] * share,
            "squared": a["squared"] + b["squared"],
        }

    def compute(state: dict[str, Any]) -> dict[str, float]:
        s = {key: float(np.sum(np.asarray(value, np.float64))) for key, value in state.items()}
        nan = float("nan")
        return {
            "r2": 1.0 - s["squared"] / s["spread"] if s["spread"] > 0 else nan,
            "mse": s["squared"] / s["count"] if s["count"] > 0 else nan,
        }

    return metrics.Metric(update, merge, compute)
