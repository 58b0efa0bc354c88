"""Origins of parameters: a run's checkpoint, or files of pretrained weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mtmm_jax.batch import Spec
from mtmm_jax.devices.mesh import Layout
from mtmm_jax.model import flatten
from mtmm_jax.paths import some
from mtmm_jax.registry import ConfigError
from mtmm_jax.store.checkpoints import restore_from
from mtmm_jax.store.workdir import Workdir
from mtmm_jax.text import read_tokenizer, tokenizer_of
from mtmm_jax.transfer import lora

WHERE = "init_from"


@dataclasses.dataclass(frozen=True)
class Origin:
    """An origin of parameters.

    Attributes:
        name: for messages.
        variables: `{"params", "batch_stats"}`.
        spec: of its data; None of weights.
        tokenizer: `modality -> tokenizer.json`, or None where it is not known.
        tasks: task -> target, of its heads.
    """

    name: str
    variables: Mapping[str, Any]
    spec: Spec | None
    tokenizer: Callable[[str], bytes | None]
    tasks: Mapping[str, str | None] = dataclasses.field(default_factory=dict)


def of_run(settings: Any, ours: Any, assemble: Callable[..., Any]) -> Origin:
    """The origin in a workdir, on our mesh if we have one, whatever it was trained on."""
    if not Path(settings.workdir).is_dir():
        raise ConfigError(f"{WHERE}.workdir: no folder {settings.workdir!r}")
    workdir = Workdir(Path(settings.workdir))
    stored = workdir.config()
    there = {**stored, "devices": 1}
    if isinstance(ours.devices, Layout):
        there |= {key: ours.config[key] for key in ("devices", "batch_size", "evaluation")}
        if isinstance(there["devices"], Mapping):  # its rules are about our paths
            there["devices"] = {k: v for k, v in there["devices"].items() if k != "rules"}
        there["optimizer"] = {k: v for k, v in stored["optimizer"].items() if k != "accumulate"}
    experiment = assemble(there, workdir.spec())
    step, state = restore_from(
        workdir, settings.step, experiment.shapes, experiment.devices, f"{WHERE}.workdir"
    )
    variables = state.variables
    if lora.ROOM in variables["params"] and lora.ROOM not in ours.shapes.params:
        merged = lora.merge(variables["params"], lora.read(stored.get("lora")))
        variables = {**variables, "params": merged}
    tasks = {name: task.target for name, task in experiment.model.tasks.items()}
    spec = experiment.model.spec
    return Origin(f"{workdir.path}, step {step}", variables, spec, workdir.tokenizer, tasks)


def check_meaning(
    ours: Any, origin: Origin, pairs: Mapping[tuple[str, str], tuple[str, str]]
) -> list[str]:
    """Refuses tensors that fit and mean something else: words by another tokenizer, classes in
    another order. Returns what could not be compared."""
    unsure = []
    spec: Spec = ours.model.spec
    for (_, path), (_, source) in pairs.items():
        room, name, *_ = [*path.split("/"), ""]
        their = [*source.split("/"), ""][1]
        if room == "encoders" and _is_vocabulary(spec, name, ours.shapes.params, path):
            verdict = _same_words(ours, origin, name, their)
            if verdict is None:
                unsure.append(f"{path}: no tokenizer to compare; do ids mean the same words?")
            elif not verdict:
                raise ConfigError(
                    f"{WHERE}: {path}: the tokenizer of {name!r} is not that of {origin.name}: "
                    "its ids mean other words. Give the data the origin's tokenizer.json, or leave "
                    "the embedding out by `map`"
                )
        elif room == "heads" and their in origin.tasks and origin.spec is not None:
            there = origin.spec.targets.get(origin.tasks[their])
            here = spec.targets.get(ours.model.tasks[name].target)
            if there is not None and here is not None and there.classes != here.classes:
                raise ConfigError(
                    f"{WHERE}: {path}: its classes are {some(there.classes)} there and "
                    f"{some(here.classes)} here; leave the head out by `map`"
                )
    return unsure


def _is_vocabulary(spec: Spec, name: str, params: Any, path: str) -> bool:
    """Whether a parameter has a row for each word of a text modality."""
    modality = spec.modalities.get(name)
    if modality is None or not modality.is_a("text"):
        return False
    leaf = flatten(params).get(path)
    return leaf is not None and leaf.ndim == 2 and leaf.shape[0] == modality.vocabulary


def _same_words(ours: Any, origin: Origin, here: str, there: str) -> bool | None:
    own = None if ours.source is None else tokenizer_of(ours.source.assets, here)
    if origin.spec is not None and not _has_tokenizer(origin, there):
        return None
    theirs = origin.tokenizer(there)
    if own is None or theirs is None:
        return None
    a, b = (read_tokenizer(text).get_vocab() for text in (own, theirs))
    return a == b


def _has_tokenizer(origin: Origin, modality: str) -> bool:
    try:
        return origin.tokenizer(modality) is not None
    except ConfigError:  # the run kept none
        return False
