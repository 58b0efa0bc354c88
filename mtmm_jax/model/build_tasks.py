"""The tasks of a model from `config.tasks`: each with its head and what it reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import flax.linen as nn

from mtmm_jax import heads, registry, tasks
from mtmm_jax.batch import Spec
from mtmm_jax.layers.reversal import read_reversal
from mtmm_jax.registry import ConfigError
from mtmm_jax.tasks.task import FUSED, Task, is_fusion, modalities_of, parse_reads

TASK_KEYS: dict[str, Any] = {
    "reads": str | Sequence[str],
    "target": str | None,
    "unimodal": bool | Literal["probe"],
    "reverse": bool | Mapping[str, Any] | None,
}
"""What is read of a task's config before its kind is built."""


def build_tasks(
    configs: Mapping[str, Any], encoders: Iterable[str], spec: Spec
) -> tuple[dict[str, Task], tuple[str, ...]]:
    """Name -> `Task`, those of one modality included, and the names of heads that only score."""
    whole, probes = _with_unimodal(configs, encoders, spec)
    if not whole:
        raise ConfigError("tasks: is empty; a model needs at least one task")
    return {name: _task(name, config, encoders, spec) for name, config in whole.items()}, probes


def _with_unimodal(
    configs: Mapping[str, Any], encoders: Iterable[str], spec: Spec
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The tasks, and for each `unimodal` task one for every modality alone, as `<task>_<modality>`:
    their losses train each encoder by itself, and are balanced like others. With "probe" they only
    score, and are named in the second answer.
    """
    found: dict[str, Any] = {}
    probes = []
    for name, config in configs.items():
        if config is None:
            continue
        config = registry.entry_of(config, f"tasks.{name}")
        for key in TASK_KEYS.keys() & config.keys():
            registry.check(config[key], TASK_KEYS[key], f"tasks.{name}.{key}")
        alone = config.pop("unimodal", False)
        found[name] = config
        if not alone:
            continue
        target = config.get("target") or name
        made_from = spec.targets[target].made_from if target in spec.targets else ()
        reads = parse_reads(config.get("reads", FUSED), spec.modalities, f"tasks.{name}")
        if len(reads) > 1 or not is_fusion(reads[0]):
            raise ConfigError(f"tasks.{name}.unimodal: the task must read one fusion, not {reads}")
        for modality in modalities_of(reads[0], encoders):
            if modality not in made_from:
                found[f"{name}_{modality}"] = {**config, "target": target, "reads": modality}
                probes += [f"{name}_{modality}"] if alone == "probe" else []
    return found, tuple(probes)


def _head(config: Any, *, where: str, **context: Any) -> nn.Module:
    return registry.build(heads.HEADS, config, where=where, **context)


def _task(name: str, config: Any, encoders: Iterable[str], spec: Spec) -> Task:
    where = f"tasks.{name}"
    config = registry.entry_of(config)
    reversal = read_reversal(config.pop("reverse", None), f"{where}.reverse")
    reads = parse_reads(config.pop("reads", FUSED), spec.modalities, where)
    for read in reads:
        for modality in modalities_of(read, encoders):
            if modality not in encoders:
                raise ConfigError(
                    f"{where}.reads: {modality!r} has no encoder; model.encoders has: "
                    f"{', '.join(encoders)}"
                )
    task = registry.build(
        tasks.TASKS, config, name, spec, where=where, reads=reads, make_head=_head
    )
    if task.target is not None:
        read_modalities = {m for read in reads for m in modalities_of(read, encoders)}
        leaks = sorted(read_modalities & set(spec.targets[task.target].made_from))
        if leaks:
            raise ConfigError(
                f"{where}.reads: {', '.join(reads)}: the label {task.target!r} is made from "
                f"{', '.join(leaks)}; read others: "
                f"{', '.join(sorted(set(encoders) - set(leaks))) or 'none'}"
            )
    return dataclasses.replace(task, reversal=reversal)
