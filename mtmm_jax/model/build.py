"""A model from `config.model`, `config.tasks` and the data's `Spec`; all is checked here first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn

from mtmm_jax import fusion, registry, sharing
from mtmm_jax.batch import Spec, choose_all
from mtmm_jax.encoders import ENCODERS, Raw
from mtmm_jax.fusion.join import ProjectToModality, Trunk
from mtmm_jax.model.build_tasks import build_tasks
from mtmm_jax.model.forward import STAGES, FusionStage
from mtmm_jax.model.linear import linear_models
from mtmm_jax.model.model import Model
from mtmm_jax.model.parts import adapters, bottlenecks, regularisers
from mtmm_jax.ranges import Decay, Entry, NonNegative, Size
from mtmm_jax.registry import ConfigError, check, short
from mtmm_jax.tasks.task import FUSED, Task, is_fusion, modalities_of

MODEL_KEYS: dict[str, Any] = {
    "width": Size,
    "encoders": Mapping[str, Entry | None],
    "fusion": Entry,
    "sharing": Entry,
    "missing": Entry | None,
    "align": Entry | None,
    "modality_dropout": Decay | Mapping[str, Decay],
    "regularisers": Sequence[Entry] | None,
    "regulariser_scale": NonNegative,
    "bottleneck": Mapping[str, Entry | None] | None,
    "adapters": Mapping[str, Mapping[str, Any] | None] | None,
    "linear": bool | Mapping[str, Entry | None] | None,
}
NEEDED = ("width", "encoders", "fusion")


class StageKey(NamedTuple):
    """A key next to the kind of fusion and its hyper-parameters: its type, and its stages."""

    wants: Any
    stages: tuple[str, ...]


STAGE_KEYS = {
    "tokens": StageKey(Size, ("early", "middle", "middle_shared")),
    "trunk": StageKey(Mapping[str, Any], ("early", "early_raw", "middle_shared")),
    "second": StageKey(Entry, ("middle",)),
    "own": StageKey(bool, ("middle",)),
}


def build(model: Mapping[str, Any], task_configs: Mapping[str, Any], spec: Spec) -> Model:
    """Assembles a model from `config.model`, `config.tasks` and the data's `Spec`.

    Every name and size is checked here, before anything compiles.
    """
    _check_keys(model)
    _check_names("model.encoders", model["encoders"])
    _check_names("tasks", task_configs)
    width = model["width"]
    stage, options, kind = _stage(model["fusion"])
    encoders = _encoders(model["encoders"], width, spec)
    if stage == "early_raw":
        encoders = {name: _raw(name, width, spec) for name in encoders}
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
            fusions[read] = FusionStage(stage, None, **prepare)
        else:
            fusions[read] = _fusion_stage(stage, kind, options, names, width, prepare)
    _check_read(model, stage, kind, fusions)
    fused = dict.fromkeys(name for read in fusions for name in modalities_of(read, encoders))
    dropped = _dropout(model.get("modality_dropout", 0.0), fused)
    if stage == "decision":
        decisions = _decisions(kind, built, encoders, model)
    off = [name for name, config in task_configs.items() if config is None]
    shared = _sharing(model.get("sharing", "hard"), built, probes, off)
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
        linear=linear_models(model.get("linear"), encoders, model["encoders"], built, spec),
    )


def _check_names(where: str, names: Iterable[str]) -> None:
    """Names become parts of parameters' paths, which "/" divides, and are printed."""
    for name in names:
        if not name.strip() or len(name) > 100 or "/" in name or not name.isprintable():
            raise ConfigError(
                f"{where}: {short(name)} is no name: it is empty, over 100 characters, or has '/' "
                "or characters that are not printed; rename it"
            )


def _check_keys(model: Mapping[str, Any]) -> None:
    """Names and types of `config.model`."""
    choose_all(model, MODEL_KEYS, "model", "key")
    if missing := [key for key in NEEDED if key not in model]:
        raise ConfigError(f"model: misses {', '.join(missing)}")
    for key, value in model.items():
        check(value, MODEL_KEYS[key], f"model.{key}")


def _stage(config: Any) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """The stage, its own options, and the fusion's kind with its hyper-parameters."""
    kind = registry.entry_of(config, "model.fusion")
    stage = check(kind.pop("stage", "late"), str, "model.fusion.stage")
    registry.choose(stage, STAGES, "model.fusion.stage", "stage")
    options = {key: kind.pop(key) for key in STAGE_KEYS if key in kind}
    for key, value in options.items():
        check(value, STAGE_KEYS[key].wants, f"model.fusion.{key}")
        if stage not in STAGE_KEYS[key].stages:
            raise ConfigError(
                f"model.fusion.{key}: stage {stage!r} has none; it belongs to: "
                f"{', '.join(STAGE_KEYS[key].stages)}"
            )
    return stage, options, kind


def _check_read(
    model: Mapping[str, Any], stage: str, kind: Mapping[str, Any], fusions: Mapping[str, Any]
) -> None:
    """Check that the config's fusion is read by some task, or else is valid at least."""
    if fusions:
        return
    table = fusion.DECISIONS if stage == "decision" else fusion.FUSIONS
    registry.choose(kind["kind"], table, "model.fusion.kind", "kind")
    for key, nothing in (("missing", "mask"), ("align", "none")):
        if registry.entry_of(model.get(key) or nothing)["kind"] != nothing:
            raise ConfigError(f"model.{key}: no task reads a fusion; choices: {nothing}")


def _dropout(given: Any, fused: Mapping[str, Any]) -> dict[str, float]:
    """Modality -> rate, from one rate for all that a fusion reads or a mapping for some."""
    where = "model.modality_dropout"
    several = isinstance(given, Mapping)
    choose_all(given if several else (), fused, where, "fused modality")
    return dict(given) if several else dict.fromkeys(fused, given)


def _optional(table: Mapping[str, Any], config: Any, where: str, nothing: str) -> Any:
    """A module of a table, or None for nothing, which has a name of its own."""
    if config is None or registry.entry_of(config, where).get("kind") == nothing:
        return None
    return registry.build({**table, nothing: None}, config, where=where)


def _fusion_stage(
    stage: str,
    kind: Mapping[str, Any],
    options: Mapping[str, Any],
    names: tuple[str, ...],
    width: int,
    prepare: Mapping[str, Any],
) -> FusionStage:
    where = "model.fusion"
    parts: dict[str, Any] = {}
    if stage == "middle":
        own = options.get("own", True)
        parts["second"] = _fusion(options.get("second", kind), len(names), width)
        parts["into"] = {name: ProjectToModality(name, own) for name in names}
    elif stage != "late":
        config = {"kind": "transformer", **options.get("trunk", {})}
        parts["trunk"] = registry.build(
            {"transformer": Trunk}, config, where=f"{where}.trunk", width=width
        )
    most = options.get("tokens", 64)
    return FusionStage(stage, _fusion(kind, len(names), width), tokens=most, **parts, **prepare)


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
        if rule.of_classes and not task.traits.class_logits:
            fitting = [key for key, entry in fusion.DECISIONS.items() if not entry.of_classes]
            raise ConfigError(
                f"model.fusion.kind: {type(rule).__name__} fuses probabilities, and tasks.{name} "
                f"is a {task.kind}; choices: {', '.join(fitting)}"
            )
        decisions[name] = rule
    return decisions


def _sharing(
    config: Any, built: Mapping[str, Task], probes: Iterable[str], off: Iterable[str]
) -> nn.Module:
    """The module, for the tasks that it names, or else for those that read "fused"."""
    where = "model.sharing"
    config = registry.entry_of(config, where)
    named = check(config.pop("tasks", None), str | Sequence[str] | None, f"{where}.tasks")
    able = [name for name, task in built.items() if task.entrance and name not in probes]
    if named is None:
        named = [name for name in able if FUSED in built[name].reads]
    named = (named,) if isinstance(named, str) else tuple(named)
    choose_all(named, (*able, *off), f"{where}.tasks", "task of one read")
    kind = config.get("kind")
    passing = tuple(name for name in built if name in named)
    if isinstance(kind, str) and kind in sharing.SHARINGS and kind != "hard" and not passing:
        raise ConfigError(
            f"{where}: {kind!r} is for the tasks that read {FUSED!r}, and there are none; name "
            f"others in {where}.tasks; choices: {', '.join(able) or 'none'}; or set it to 'hard'"
        )
    return registry.build(sharing.SHARINGS, config, where=where, tasks=passing)


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
            vocabulary=modality.vocabulary or 0,
            rate=modality.rate,
            shape=modality.shape,
        )
        if not encoder.accepts(modality):
            fitting = [kind for kind, other in ENCODERS.items() if other.accepts(modality)]
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
