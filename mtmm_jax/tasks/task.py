"""A task: all that depends on its kind, for the model, the training and what follows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mtmm_jax.batch import Batch, Spec, Target
from mtmm_jax.heads.bound_module import row_of
from mtmm_jax.registry import ConfigError, choose
from mtmm_jax.tasks.metrics.monoids import Metric
from mtmm_jax.tasks.traits import (
    NO_TRAITS,
    Labelling,
    Space,
    Speech,
    Traits,
    arrays_of,
    no_drawing,
)
from mtmm_jax.tasks.traits.distilled import Distilled
from mtmm_jax.tasks.traits.explained import PROJECTION, Explained
from mtmm_jax.tasks.traits.linear import Linear

FUSED = "fused"


@dataclasses.dataclass(frozen=True)
class Labels:
    """A task's labels in one batch: `y` (None if it has none), the rows that count, their ids."""

    y: Any
    weight: jax.Array
    id: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class Task:
    """One task of a model; nothing outside `tasks/` compares its `kind`.

    All from `smaller` on may be left out: such a task is trained, evaluated, predicted, explained
    and exported; it is not labelled with, distilled, averaged or looked up.

    Attributes:
        name: as in the config.
        reads: what its head reads: "fused", a modality, or modalities joined by "+" for a fusion
            over just those; several entries for several inputs.
        target: the name of its label in the batch, or None.
        head: Linen module from `{read: Tokens}` to a prediction.
        loss: `(prediction, Labels, axis_name) -> (sum, count)`.
        metrics: name -> `Metric` over `(prediction, Labels)`.
        headline: the metric by which runs are compared.
        decode: prediction of one sample -> what a person reads.
        trivial: what to predict without looking at the inputs, as a prediction of one sample.
        reversal: what turns the gradient round on its way from the head to what it reads
            (`layers.reversal`); None: the model helps the task.
        smaller: the names of the metrics that are better when smaller.
        secondary: the names of metrics that tables show next to the headline.
        outputs: `prediction -> {name: [B, ...]}` in the label's units; pure, for `jit`.
        restore: outputs -> a prediction of the same metrics; None where outputs do not suffice.
        decode_outputs: outputs of one row -> what `decode` gives of its prediction; by default
            through `restore`.
        explained: the scalar that attribution follows; None if the task is not explained.
        labelling: how predictions become labels of a manifest; None if they do not.
        distilled: how the task is imitated; None if it cannot be.
        space: the common space of what the task reads, if it makes one.
        speech: what it does to speak, if it does.
        drawing: `({metric: state}, examples) -> {name: array}`, what the report draws: "confusion"
            `[true, predicted]`, "calibration" `[bins, 3]` (how many rows, the sum of their
            confidences, how many were right), "points" `[rows, 2]` (label, prediction), or
            "query/NAME" `[Q]` and "answer/NAME" `[Q, K]`, ids of rows.
        linear: how its linear models are fitted and mixed; None if it has none.
        traits: facts about the kind.
    """

    name: str
    kind: str
    reads: tuple[str, ...]
    target: str | None
    head: nn.Module
    loss: Callable[[Any, Labels, str | None], tuple[jax.Array, jax.Array]]
    metrics: Mapping[str, Metric]
    headline: str
    decode: Callable[[Any], dict[str, Any]]
    trivial: Any
    reversal: nn.Module | None = None
    smaller: tuple[str, ...] = ()
    secondary: tuple[str, ...] = ()
    outputs: Callable[[Any], dict[str, jax.Array]] = arrays_of
    restore: Callable[[Mapping[str, Any]], Any] | None = None
    decode_outputs: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None
    explained: Explained | None = PROJECTION
    labelling: Labelling | None = None
    distilled: Distilled | None = None
    space: Space | None = None
    speech: Speech | None = None
    drawing: Callable[[Mapping[str, Any], int], dict[str, Any]] = no_drawing
    linear: Linear | None = None
    traits: Traits = NO_TRAITS

    @property
    def smaller_is_better(self) -> bool:
        """Whether the headline is better when smaller."""
        return self.headline in self.smaller

    def answer(self, outputs: Mapping[str, Any]) -> dict[str, Any] | None:
        """The prediction as `decode` gives it, from the outputs of one row; None where these do not
        suffice."""
        if self.decode_outputs is not None:
            return self.decode_outputs(outputs)
        if self.restore is None:
            return None
        rows = {name: np.asarray(value)[None] for name, value in outputs.items()}
        return self.decode(row_of(self.restore(rows), 0))

    @property
    def entrance(self) -> str | None:
        """The read that passes the sharing: "fused", or the only one that the task has."""
        if FUSED in self.reads:
            return FUSED
        return self.reads[0] if len(self.reads) == 1 else None

    def labels(self, batch: Batch, present: Mapping[str, jax.Array]) -> Labels:
        """The labels, counting the rows that have one and all that the task reads.

        Args:
            batch: as in `batch.py`.
            present: read -> `[B]` bool, whether anything of it is there.
        """
        rows = jnp.stack([present[read] for read in self.reads]).all(0)
        y = None
        if self.target is not None:
            entry = batch["targets"].get(self.target)
            if entry is None:
                rows = jnp.zeros_like(rows)
            else:
                rows = rows & entry["present"]
                y = entry["y"]
        weight = rows.astype(jnp.float32) * batch.get("weight", 1.0)
        return Labels(y, weight, batch.get("id"))


def parse_reads(reads: str | Iterable[str], modalities: Iterable[str], where: str) -> tuple:
    """`"fused"`, `"image"`, `"image+text"` or a list of these, checked and put in order."""
    modalities = tuple(modalities)
    parsed = []
    for read in (reads,) if isinstance(reads, str) else tuple(reads):
        names = sorted(part.strip() for part in str(read).split("+"))
        if names != [FUSED]:
            for name in names:
                choose(name, (*modalities, FUSED), f"{where}.reads", "modality")
            if FUSED in names:
                raise ConfigError(f"{where}.reads: {read!r}: 'fused' already reads all modalities")
        parsed.append("+".join(names))
    if not parsed:
        raise ConfigError(f"{where}.reads: is empty; choices: fused, {', '.join(modalities)}")
    return tuple(parsed)


def is_fusion(read: str) -> bool:
    """Whether an entry of `Task.reads` is a fusion, of all modalities or of some."""
    return read == FUSED or "+" in read


def modalities_of(read: str, modalities: Iterable[str]) -> tuple[str, ...]:
    """The modalities behind one entry of `Task.reads`."""
    return tuple(modalities) if read == FUSED else tuple(read.split("+"))


def find_target(name: str, target: str | None, kind: str, spec: Spec, where: str) -> tuple:
    """The label's name (the task's own by default) and its `Target`, of the right kind."""
    target = target or name
    if target not in spec.targets:
        fitting = [key for key, value in spec.targets.items() if value.is_a(kind)]
        raise ConfigError(
            f"{where}.target: the data has no label {target!r}; labels of kind {kind!r}: "
            f"{', '.join(fitting) or 'none'}"
        )
    found: Target = spec.targets[target]
    if not found.is_a(kind):
        raise ConfigError(
            f"{where}.target: {target!r} is a {found.kind!r} label; the task needs {kind!r}"
        )
    return target, found


def masked(values: jax.Array, weight: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`(sum, count)` of per-row values; a row of weight 0 adds nothing, be it NaN."""
    values = jnp.where(weight > 0, values, 0.0)
    return (values * weight).sum(), weight.sum()
