"""A model from `config.model`, `config.tasks` and the data's `Spec`; all is checked here first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from mtmm_jax import fusion, registry, sharing
from mtmm_jax.batch import Spec, choose_all
from mtmm_jax.encoders import ENCODERS, Raw
from mtmm_jax.fusion.join import Into, Trunk
from mtmm_jax.model.build_tasks import build_tasks
from mtmm_jax.model.model import Model
from mtmm_jax.model.parts import adapters, bottlenecks, regularisers
from mtmm_jax.model.stages import STAGES, Fusing
from mtmm_jax.registry import ConfigError, whole_number
from mtmm_jax.tasks.task import FUSED, Task, is_fusion, modalities_of

MODEL_KEYS = (
    "width",
    "encoders",
    "fusion",
    "sharing",
    "missing",
    "align",
    "modality_dropout",
    "regularisers",
    "regulariser_scale",
    "bottleneck",
    "adapters",
)
# Beside the kind of fusion and its hyper-parameters; some belong to some stages only.
STAGE_KEYS = {
    "tokens": ("early", "middle", "middle_shared"),
    "trunk": ("early", "early_raw", "middle_shared"),
    "second": ("middle",),
    "own": ("middle",),
}


def build(model: Mapping[str, Any], task_configs: Mapping[str, Any], spec: Spec) -> Model:
    """Assembles a model from `config.model`, `config.tasks` and the data's `Spec`.

    Every name and size is checked here, before anything compiles.
    """
    choose_all(model, MODEL_KEYS, "model", "key")
    width = model["width"]
    stage, options, kind = _stage(model["fusion"])
    encoders = _encoders(model.get("encoders") or {}, width, spec)
    if stage == "early_raw":
        encoders = {name: _raw(name, width, spec) for name in encoders}
    dropped = _dropout(model.get("modality_dropout", 0.0), encoders)
    built, probes = build_tasks(task_configs, encoders, spec)
    reads = dict.fromkeys(r for task in built.values() for r in task.reads)
    prepare = {
        "missing": _optional(fusion.MISSING, model.get("missing"), "model.missing", "mask"),
        "align": _optional(fusion.ALIGNMENTS, model.get("align"), "model.align", "none"),
    }
    fusions, decisions = {}, {}
    for read in filter(is_fusion, reads):
        names = modalities_of(read, encoders)
        if stage == "decision":
            fusions[read] = Fusing(stage, None, **prepare)
        else:
            fusions[read] = _fusing(stage, kind, options, names, width, prepare)
    if stage == "decision":
        decisions = _decisions(kind, built, encoders, model)
    shared = registry.build(
        sharing.SHARINGS,
        model.get("sharing", "hard"),
        where="model.sharing",
        tasks=tuple(name for name, task in built.items() if FUSED in task.reads),
    )
    terms = regularisers(model, encoders, fusions, built, spec)
    return Model(
        spec,
        encoders,
        fusions,
        shared,
        built,
        dropped,
        decisions,
        terms,
        probes,
        bottlenecks=bottlenecks(model.get("bottleneck") or {}, encoders, fusions),
        adapters=adapters(model.get("adapters") or {}, encoders, stage),
    )


def _stage(config: Any) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """The stage, its own options, and the fusion's kind with its hyper-parameters."""
    kind = registry.entry_of(config)
    stage = registry.choose(kind.pop("stage", "late"), STAGES, "model.fusion.stage", "stage")
    options = {key: kind.pop(key) for key in STAGE_KEYS if key in kind}
    for key in options:
        if stage not in STAGE_KEYS[key]:
            raise ConfigError(
                f"model.fusion.{key}: stage {stage!r} has none; it belongs to: "
                f"{', '.join(STAGE_KEYS[key])}"
            )
    return stage, options, kind


def _dropout(given: Any, encoders: Mapping[str, Any]) -> dict[str, float]:
    """Modality -> rate, from one rate for all or a mapping for some."""
    where = "model.modality_dropout"
    rates = given if isinstance(given, Mapping) else dict.fromkeys(encoders, given)
    choose_all(rates, encoders, where, "modality")
    for name, rate in rates.items():
        at = f"{where}.{name}" if rates is given else where
        if not isinstance(rate, int | float) or not 0.0 <= rate < 1.0:
            raise ConfigError(f"{at}: {rate!r} is not in [0, 1)")
    return dict(rates)


def _optional(table: Mapping[str, Any], config: Any, where: str, nothing: str) -> Any:
    """A module of a table, or None for nothing, which has a name of its own."""
    kind = config if isinstance(config, str) or config is None else config.get("kind")
    if kind in (None, nothing):
        return None
    return registry.build({**table, nothing: None}, config, where=where)


def _fusing(
    stage: str,
    kind: Mapping[str, Any],
    options: Mapping[str, Any],
    names: tuple[str, ...],
    width: int,
    prepare: Mapping[str, Any],
) -> Fusing:
    where = "model.fusion"
    parts: dict[str, Any] = {}
    if stage == "middle":
        own = options.get("own", True)
        parts["second"] = _fusion(options.get("second", kind), len(names), width)
        parts["into"] = {name: Into(name, own) for name in names}
    elif stage != "late":
        config = {"kind": "transformer", **options.get("trunk", {})}
        parts["trunk"] = registry.build(
            {"transformer": Trunk}, config, where=f"{where}.trunk", width=width
        )
    most = options.get("tokens", 64)
    whole_number(most, f"{where}.tokens")
    return Fusing(stage, _fusion(kind, len(names), width), tokens=most, **parts, **prepare)


def _decisions(
    kind: Any, built: Mapping[str, Task], encoders: Mapping[str, Any], model: Mapping[str, Any]
) -> dict[str, nn.Module]:
    """For each task that reads several modalities fused: the rule over their predictions."""
    for key, nothing in (("sharing", "hard"), ("missing", "mask"), ("align", "none")):
        config = model.get(key) or nothing
        if (config if isinstance(config, str) else config.get("kind")) != nothing:
            raise ConfigError(
                f"model.{key}: stage 'decision' fuses predictions, no features; choices: {nothing}"
            )
    decisions = {}
    for name, task in built.items():
        fused = [read for read in task.reads if is_fusion(read)]
        if not fused:
            continue
        if len(task.reads) > 1:
            raise ConfigError(
                f"tasks.{name}.reads: stage 'decision' fuses the predictions of one read, not of "
                f"{', '.join(task.reads)}"
            )
        rule = registry.build(
            fusion.DECISIONS,
            kind,
            where="model.fusion",
            modalities=modalities_of(fused[0], encoders),
        )
        if rule.of_classes and task.kind != "classification":
            fitting = [key for key, entry in fusion.DECISIONS.items() if not entry.of_classes]
            raise ConfigError(
                f"model.fusion.kind: {type(rule).__name__} fuses probabilities, and tasks.{name} "
                f"is a {task.kind}; choices: {', '.join(fitting)}"
            )
        decisions[name] = rule
    return decisions


def _raw(name: str, width: int, spec: Spec) -> nn.Module:
    modality = spec.modalities[name]
    if not Raw.accepts(modality):
        raise ConfigError(
            f"model.fusion.stage: 'early_raw' needs inputs of a fixed size; {name} is "
            f"{modality.kind} of shape {modality.shape}; choices: early, middle, late, decision"
        )
    return Raw(width, modality=name, vocabulary=modality.vocabulary or 0)


def _encoders(configs: Mapping[str, Any], width: int, spec: Spec) -> dict[str, nn.Module]:
    encoders = {}
    for name, config in configs.items():
        if config is None:
            continue
        where = f"model.encoders.{name}"
        registry.choose(name, spec.modalities, where, "modality")
        modality = spec.modalities[name]
        encoder = registry.build(
            ENCODERS,
            config,
            where=where,
            width=width,
            modality=name,
            vocabulary=modality.vocabulary,
            rate=modality.rate,
        )
        if not encoder.accepts(modality):
            fitting = [kind for kind, entry in ENCODERS.items() if entry.accepts(modality)]
            raise ConfigError(
                f"{where}.kind: {type(encoder).__name__} does not read {modality.kind} of shape "
                f"{modality.shape}; choices: {', '.join(fitting) or 'none'}"
            )
        encoders[name] = encoder
    if not encoders:
        raise ConfigError(f"model.encoders: is empty; the data has {', '.join(spec.modalities)}")
    return encoders


def _fusion(config: Any, count: int, width: int) -> nn.Module:
    module = registry.build(fusion.FUSIONS, config, where="model.fusion", width=width)
    fewest, most = module.modalities
    if count < fewest or (most is not None and count > most):
        raise ConfigError(
            f"model.fusion: {type(module).__name__} fuses {fewest} to {most} modalities, "
            f"not {count}"
        )
    return module
