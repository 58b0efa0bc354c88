"""Changes of the batch inside the training step: augmentation and masking."""

from __future__ import annotations

from typing import Any

from mtmm_jax.assembly import Parts, StepContext, StepHook
from mtmm_jax.batch import Batch
from mtmm_jax.data.pipeline.augment_jit import augmenter
from mtmm_jax.tasks.hidden import hider

KEYS = "augment"  # the purpose of the keys by example, of both


def _hook(name: str, change: Any) -> StepHook:
    def prepare(context: StepContext, batch: Batch) -> Batch:
        return change(context.example_keys(KEYS), batch)

    return StepHook(name, prepare=prepare)


def augment(section: Any, parts: Parts) -> Parts:
    """The extension `data.in_step`: modality -> augmentations on the device."""
    if parts.source is None or not section:
        return parts
    change = augmenter(section, parts.source.spec, "data.in_step")
    return parts.add_hook(_hook("data.in_step", change))


def mask(section: Any, parts: Parts) -> Parts:
    """The parts of inputs that tasks hide from the model (`tasks.<name>.hide`)."""
    del section
    if parts.source is None:
        return parts
    change = hider(parts.model.tasks, parts.source.spec.modalities)
    return parts if change is None else parts.add_hook(_hook("tasks.hide", change))
