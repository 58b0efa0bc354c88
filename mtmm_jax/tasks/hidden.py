"""Masked modelling within a modality: a part of an input is hidden in training, and predicted from
the rest.

`reconstruction(hide=0.5, patch=8)` has its encoder see an image without half of its patches (a
table without columns, a series without stretches), `words(hide=0.5)` a text without half of its
words, and their loss counts only what was hidden (masked autoencoders: He et al. 2022; BERT: Devlin
et al. 2019). It happens inside the training step, after `data.in_step`, by keys of examples; in
evaluation nothing is hidden and all is counted. What else reads the modality sees the holes too,
which is a strong augmentation.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from mtmm_jax.batch import Batch, Modality
from mtmm_jax.keys import fold_in_name
from mtmm_jax.registry import ConfigError
from mtmm_jax.tasks.task import Labels, Task

Augment = Callable[[jax.Array, Batch], Batch]


def target_of(task: str) -> str:
    """The target under which a batch keeps what was hidden from a task."""
    return f"hidden/{task}"


def check(modality: Modality, hide: float, patch: int, where: str) -> None:
    """Raises a `ConfigError` where a patch does not fit a modality of which a share is hidden."""
    sides = modality.shape[:2] if modality.is_a("image") else modality.shape[:1]
    if not hide or modality.is_a("table") or patch == 1:
        return
    if any(side is None or side % patch for side in sides):
        raise ConfigError(f"{where}.patch: {patch} does not divide {list(sides)}")


@dataclasses.dataclass(frozen=True)
class OfInput(Task):
    """A task whose label is an input: `y` has `known`, `[B, N]`, what of it counts.

    Attributes:
        modality: the input.
        hide: the share that the model does not see in training.
        patch: the side, or the number, of what is hidden together.
    """

    modality: str = ""
    hide: float = 0.0
    patch: int = 1

    def said(self, entry: Mapping[str, Any], gone: jax.Array | None) -> dict[str, jax.Array]:
        """`y` of the whole input; `gone` are the parts that were hidden, None if none was."""
        raise NotImplementedError

    def labels(self, batch: Batch, present: Mapping[str, jax.Array]) -> Labels:
        labels = super().labels(batch, present)
        entry, gone = batch["inputs"].get(self.modality), None
        if entry is None:
            return dataclasses.replace(labels, weight=jnp.zeros_like(labels.weight))
        if (hidden := batch["targets"].get(target_of(self.name))) is not None:
            entry, gone = hidden["y"], hidden["gone"]
        y = self.said(entry, gone)
        counts = entry["present"] & y["known"].any(1)
        return dataclasses.replace(labels, y=y, weight=jnp.where(counts, labels.weight, 0.0))


def hidden_cells(keys: jax.Array, shape: tuple[int, ...], share: float) -> jax.Array:
    """`[B, *shape]` bool: in each row round(share n) of its n cells, but never all."""
    count = math.prod(shape)
    gone = min(round(share * count), count - 1)
    draw = jax.vmap(lambda key: jax.random.uniform(key, (count,), jnp.float32))(keys)
    rank = jnp.argsort(jnp.argsort(draw, axis=-1), axis=-1)
    return (rank < gone).reshape(-1, *shape)


def spread(cells: jax.Array, size: int, dims: int) -> jax.Array:
    """Each cell as `size` places along each of its `dims` axes."""
    for axis in range(1, 1 + dims):
        cells = jnp.repeat(cells, size, axis=axis)
    return cells


def hider(tasks: Mapping[str, Any], modalities: Mapping[str, Modality]) -> Augment | None:
    """`(keys [B], batch) -> batch` with holes, and with what was there as a target; None if no task
    hides anything.

    Args:
        tasks: those with a share `hide` above 0 count.
        modalities: of the data.
    """
    hiding = {name: task for name, task in tasks.items() if getattr(task, "hide", 0.0)}
    if not hiding:
        return None
    known: dict[str, str] = {}
    for name, task in hiding.items():
        other = known.setdefault(task.modality, name)
        if other != name:
            raise ConfigError(
                f"tasks.{name}.hide: tasks.{other} hides parts of {task.modality!r} already"
            )

    def apply(keys: jax.Array, batch: Batch) -> Batch:
        inputs, targets = dict(batch["inputs"]), dict(batch["targets"])
        for name, task in hiding.items():
            if task.modality not in inputs:
                continue
            entry, modality = inputs[task.modality], modalities[task.modality]
            own = fold_in_name(keys, name)
            dims = 2 if modality.is_a("image") else 1
            patch = 1 if modality.is_a("table") else task.patch
            shape = tuple(side // patch for side in entry["x"].shape[1 : 1 + dims])
            gone = spread(hidden_cells(own, shape, task.hide), patch, dims)
            wide = gone.reshape(*gone.shape, *[1] * (entry["x"].ndim - gone.ndim))
            seen = {**entry, "x": jnp.where(wide, jnp.zeros((), entry["x"].dtype), entry["x"])}
            if "mask" in entry:
                seen["mask"] = entry["mask"] & ~gone
            inputs[task.modality] = seen
            whole = {"y": entry, "present": entry["present"], "gone": gone}
            targets[target_of(name)] = whole
        return {**batch, "inputs": inputs, "targets": targets}

    return apply


def in_turn(steps: Iterable[Augment | None]) -> Augment | None:
    """The augmentations one after the other; None for none."""
    some = [step for step in steps if step is not None]
    if not some:
        return None

    def apply(keys: jax.Array, batch: Batch) -> Batch:
        for step in some:
            batch = step(keys, batch)
        return batch

    return apply
