"""Commands and modules that have moved: importing an old path names the new one in one line."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

MOVED = {
    "benchmarks.balancing_plot": "benchmarks.balancing.plot",
    "benchmarks.blocks": "benchmarks.speed.blocks",
    "benchmarks.data": "benchmarks.speed.data",
    "benchmarks.domains": "benchmarks.studies.domains",
    "benchmarks.explanations": "benchmarks.studies.explanations",
    "benchmarks.few_labels": "benchmarks.studies.few_labels",
    "benchmarks.kills": "benchmarks.reliability.crash_recovery",
    "benchmarks.leaderboard": "benchmarks.tables.leaderboard",
    "benchmarks.missing": "benchmarks.studies.missing",
    "benchmarks.overhead": "benchmarks.speed.overhead",
    "benchmarks.pacing": "benchmarks.balancing.pacing",
    "benchmarks.pareto": "benchmarks.balancing.pareto",
    "benchmarks.pretrained": "benchmarks.studies.pretrained",
    "benchmarks.recipe_texts": "benchmarks.recipes.texts",
    "benchmarks.scaling": "benchmarks.speed.scaling",
    "benchmarks.seeds": "benchmarks.tables.seeds",
    "benchmarks.singles": "benchmarks.tables.singles",
    "benchmarks.smaller": "benchmarks.studies.smaller",
    "benchmarks.speech": "benchmarks.studies.speech",
    "benchmarks.synergy": "benchmarks.studies.synergy",
    "benchmarks.width": "benchmarks.studies.width",
    "data.annotations": "data.inspect.annotations",
    "data.check": "data.inspect.check",
    "data.pipeline.chance": "chance",
    "data.readers": "readers",
    "data.show": "data.inspect.show",
    "data.sources.manifest.boxes": "targets.boxes",
    "data.sources.manifest.described": "data.inspect.described",
    "data.sources.manifest.files": "readers.files",
    "data.sources.manifest.guess": "data.inspect.columns",
    "data.sources.manifest.labels": "targets.column",
    "data.sources.manifest.targets": "targets",
    "encoders.mlp": "encoders.encoder",
    "evaluation.corruptions": "modalities.corruption",
    "evaluation.units": "modalities.units",
    "exported": "inference.exported",
    "layers.dropout": "layers.positionwise",
    "layers.feed_forward": "layers.positionwise",
    "layers.run": "model.forward",
    "mesh": "devices.mesh",
    "model.paths": "model.parameters",
    "model.readout": "model.model",
    "model.rewrite": "model.parameters",
    "model.split": "model.model",
    "model.stages": "model.forward",
    "model.trunk": "model.model",
    "parallel": "devices.parallel",
    "partition": "devices.partition",
    "processes": "devices.processes",
    "training.asking": "inference.prediction",
    "training.checkpoints": "store.checkpoints",
    "training.config": "store.config",
    "training.exporting": "inference.export",
    "training.finished": "inference.finished",
    "training.workdir": "store.workdir",
    "transfer.paths": "paths",
    "transfer.pruning": "optim.pruning",
}


class _Moved:
    """A finder that finds nothing: it only knows where things went."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: Any = None) -> None:
        del path, target
        new = MOVED.get(name.removeprefix("mtmm_jax."))
        if new is not None and name.startswith("mtmm_jax."):
            raise ModuleNotFoundError(f"{name} is now mtmm_jax.{new}", name=name)


def install() -> None:
    """Puts the finder behind all others."""
    if _Moved not in sys.meta_path:
        sys.meta_path.append(_Moved)
