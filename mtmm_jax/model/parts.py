"""The optional parts of a model: adapters, bottlenecks, regularisers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from mtmm_jax import fusion, registry, tasks
from mtmm_jax.batch import Spec, choose_all
from mtmm_jax.layers import Adapter
from mtmm_jax.model.forward import FusionStage
from mtmm_jax.ranges import NonNegative
from mtmm_jax.registry import ConfigError, check
from mtmm_jax.tasks.task import Task, modalities_of

ALL = "all"  # modalities, in `model.bottleneck`


def adapters(configs: Any, encoders: Mapping[str, Any], stage: str) -> dict[str, nn.Module]:
    """`{modality: adapter}`: what stands behind encoders that are whole, before anything else."""
    where = "model.adapters"
    choose_all(configs, encoders, where, "modality")
    if configs and stage not in ("late", "decision"):
        raise ConfigError(
            f"{where}: they stand behind whole encoders, and stage {stage!r} fuses before or "
            "between their halves; choices of model.fusion.stage: late, decision"
        )
    return {
        name: registry.build(
            {"adapter": Adapter}, {"kind": "adapter", **config}, where=f"{where}.{name}"
        )
        for name, config in configs.items()
        if config is not None
    }


def bottlenecks(
    configs: Any, encoders: Mapping[str, Any], fusions: Mapping[str, FusionStage]
) -> dict[str, nn.Module]:
    """`{modality or "all": entry}`: what stands between encoders and fusion."""
    where = "model.bottleneck"
    choose_all(configs, (*encoders, ALL), where, "modality")
    fused = dict.fromkeys(m for read in fusions for m in modalities_of(read, encoders))
    found = {}
    for name in encoders:
        config = configs.get(name, configs.get(ALL))
        if config is None or (name not in fused and name not in configs):
            continue
        if name not in fused:
            raise ConfigError(
                f"{where}.{name}: no task reads a fusion of {name}; choices: "
                f"{', '.join(fused) or 'none'}"
            )
        at = f"{where}.{name if name in configs else ALL}"
        found[name] = registry.build(fusion.BOTTLENECKS, config, where=at)
    return found


def regularisers(
    model: Mapping[str, Any],
    encoders: Mapping[str, Any],
    fusions: Mapping[str, FusionStage],
    built: Mapping[str, Task],
    spec: Spec,
) -> dict[str, tuple[float, Any]]:
    """Name -> (lambda alpha, term). What they look at must be there."""
    scale = model.get("regulariser_scale", 1.0)
    found = {}
    for i, config in enumerate(model.get("regularisers") or ()):
        where = f"model.regularisers[{i}]"
        config = registry.entry_of(config)
        alpha = config.pop("alpha", 1.0)
        check(alpha, NonNegative, f"{where}.alpha")
        term = registry.build(tasks.REGULARISERS, config, where=where, data=spec)
        there = [read for read, fusing in fusions.items() if fusing.stage != "decision"]
        choose_all(term.reads, (*encoders, *there), where, "modality")
        choose_all(term.tasks, built, where, "task")
        choose_all(term.targets, spec.targets, where, "label")
        found[f"regularisers/{i}_{config['kind']}"] = (scale * alpha, term)
    return found
