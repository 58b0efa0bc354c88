"""Many short trainings in one process: no folder, no report, one compile for all seeds."""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import Any

import jax
import numpy as np
from rich.progress import track

from mtmm_jax import training
from mtmm_jax.command import console
from mtmm_jax.devices import parallel
from mtmm_jax.evaluation import Evaluator, headlines
from mtmm_jax.training.loop import evaluation_batches


def without(config: Any, names: Collection[str]) -> None:
    """Takes modalities out of a config, and the tasks that read them."""
    with config.unlocked(), config.ignore_type():
        for name in names:
            config.model.encoders[name] = None
        for name, task in list(config.tasks.items()):
            reads = (task or {}).get("reads", "fused")
            if set(names) & set([reads] if isinstance(reads, str) else reads):
                config.tasks[name] = None
        if sum(spec is not None for spec in config.model.encoders.values()) == 1:
            config.model.modality_dropout = 0.0


class ShortRun:
    """A config, compiled once and trained from several seeds.

    The seed sets initial parameters and the order of the data; dropout draws the same for all.

    Args:
        config: as for training; its checkpoints and logs are left aside.
    """

    def __init__(self, config: Any) -> None:
        self.experiment = training.assemble(config)
        self._step = parallel.wrap(self.experiment.step(), self.experiment.devices)
        self._evaluator = Evaluator(self.experiment.model, self.experiment.devices)

    def train(self, seed: int) -> Any:
        """The variables after the config's steps."""
        experiment = self.experiment
        config = experiment.config
        state = parallel.replicate(experiment.init(seed), experiment.devices)
        batches = iter(experiment.source.train(config["batch_size"], seed=seed))
        out = console()
        shown = {"console": out, "disable": not out.is_terminal, "transient": True}
        for _ in track(range(config["steps"]), f"seed {seed}", **shown):
            state, _ = self._step(state, next(batches))
        return jax.block_until_ready(state.variables)

    def evaluate(self, variables: Any, split: str, only: Any = None) -> dict[str, Any]:
        """`{task: {metric: value}}` on a split, with only some modalities if `only` is given."""
        batches = evaluation_batches(self.experiment, split)
        return self._evaluator.results(variables, batches, only)

    def metrics(self, results: dict[str, Any]) -> dict[str, float]:
        """`{task: headline}`, larger is better."""
        return headlines(self.experiment.model, results)

    def row(self, seed: int) -> dict[str, Any]:
        """One training: validation and test headlines, their means, parameters, seconds."""
        started = time.monotonic()
        variables = self.train(seed)
        row: dict[str, Any] = {"seed": seed, "parameters": self.experiment.parameters}
        for split in ("validation", "test"):
            metrics = self.metrics(self.evaluate(variables, split))
            row[split] = {name: round(float(value), 4) for name, value in metrics.items()}
            row[f"{split}_mean"] = round(float(np.mean(list(metrics.values()))), 4)
        row["seconds"] = round(time.monotonic() - started, 1)
        return row
