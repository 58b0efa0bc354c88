"""Metrics of a run's steps: kept on the device, fetched together, written and shown."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from mtmm_jax.data.pipeline.source import Source, Training
from mtmm_jax.devices import parallel
from mtmm_jax.training.experiment import Experiment
from mtmm_jax.training.faults import Faults, diverged
from mtmm_jax.training.logs import Watch
from mtmm_jax.training.profiling import Meter


class StepMetrics:
    """The metrics of the steps since the last log.

    Args:
        experiment: whose steps they are.
        iterator: gives the batches, its epochs and shares.
        journal: where the means are written.
        watch: where they are shown.
        faults: looks at every step.
        meter: knows the parts of the steps' time.
        start: the step that the run stands at.
    """

    def __init__(
        self,
        experiment: Experiment,
        iterator: Training,
        journal: Any,
        watch: Watch,
        faults: Faults,
        meter: Meter | None,
        start: int,
    ) -> None:
        self._experiment, self._iterator, self._journal = experiment, iterator, journal
        self._watch, self._faults, self._meter = watch, faults, meter
        self._kept: list[Any] = []
        self._logged = start
        self.pause()

    def add(self, metrics: Any) -> None:
        """Of one more step, which may still be running."""
        self._kept.append(metrics)

    def waited(self, seconds: float) -> None:
        """For a batch."""
        self._waited += seconds

    def pause(self) -> None:
        """Leaves the time since the last log, such as a validation's, out of training time."""
        self._since, self._waited = time.monotonic(), 0.0

    def tell(self, number: int) -> None:
        """Fetches what is kept, of the steps up to `number`, and waits for them.

        Raises:
            faults.Diverged: after `abort_after` steps in a row that learned nothing.
        """
        fetched = parallel.fetch(self._kept, self._experiment.devices)
        self._kept = []
        self._log(number, fetched)
        for line in self._faults.look(number, fetched):
            self._watch.say(line)

    def _log(self, number: int, metrics: list[dict[str, Any]]) -> None:
        """Means over the steps since the last log."""
        names, meter, iterator = self._experiment.model.loss_names, self._meter, self._iterator
        present = np.stack([f["present"] for f in metrics])
        mean_losses = _mean(_stacked(metrics, "losses"), present)
        weights = np.stack([f["weights"] for f in metrics]).mean(0)
        now = time.monotonic()
        seconds = max(now - self._since, 1e-9)
        done = max(number - self._logged, 1)
        self._journal.write(
            number,
            "train",
            {
                "loss": _named(names, mean_losses),
                "weight": _named(names, weights),
                "learning_rate": float(self._experiment.learning_rates[number - 1]),
                "steps_per_second": done / seconds,
                "data_wait": self._waited / seconds,
                **(meter.metrics(seconds, done, self._waited) if meter is not None else {}),
                "epoch": iterator.epochs[0] if len(iterator.epochs) == 1 else list(iterator.epochs),
                **({"data_shares": list(iterator.shares)} if len(iterator.shares) > 1 else {}),
                "skipped": int(sum(f["skipped"] for f in metrics)),
                "absent": _named(names, (~present).sum(0)),
                "diverged": _named(names, np.sum([diverged(f) for f in metrics], axis=0)),
                **_diagnostics(names, metrics),
                **_of_hooks(self._experiment, metrics),
            },
        )
        advice = waiting_advice(self._experiment.source, self._experiment.config["data"])
        self._watch.update(number, mean_losses, weights, self._waited / seconds, advice)
        # Writing is time of the next steps.
        self._logged, self._since, self._waited = number, now, 0.0


def waiting_advice(source: Source, data: Mapping[str, Any]) -> str:
    """Advice where steps wait for batches."""
    decode = "decode files once (data.decoded = None), or " if data.get("decoded") is False else ""
    return f"{decode}make more batches at once with data.workers ({source.workers} now)"


def _diagnostics(names: tuple[str, ...], metrics: list[dict[str, Any]]) -> dict[str, Any]:
    """Diagnostics of gradient methods, averaged: scalars, the tasks' gradient norms, their cosines.

    A task counts in the steps that it is present in, a pair in those that both are, and the
    scalars, which are about pairs, in the steps that have one. Metrics that are not finite,
    as in a skipped step, count nowhere.
    """
    if "cosines" not in metrics[0]:
        return {}
    present = np.stack([f["present"] for f in metrics])
    together = present[:, :, None] & present[:, None, :]
    finite = np.isfinite(_stacked(metrics, "norms")).all(1)  # NaN < 0 would be no conflict
    paired = (present.sum(1) > 1) & finite
    scalars = [k for k in metrics[0] if k != "skipped" and np.ndim(metrics[0][k]) == 0]
    return {
        **{key: _finite_mean(metrics, key, paired).item() for key in scalars},
        "gradient_norm": _named(names, _finite_mean(metrics, "norms", present)),
        "cosines": {
            "tasks": list(names),
            "mean": _finite_mean(metrics, "cosines", together).round(3).tolist(),
        },
    }


def _of_hooks(experiment: Experiment, metrics: list[dict[str, Any]]) -> dict[str, Any]:
    """The metrics of hooks, averaged over the steps that have them."""
    found = {}
    for hook in experiment.hooks:
        for key in (key for key in metrics[0] if key.startswith(f"{hook.name}/")):
            mean = _finite_mean(metrics, key, np.True_)
            found[key] = _named(hook.names, mean) if mean.ndim else mean.item()
    return found


def _finite_mean(metrics: list[dict[str, Any]], key: str, counted: np.ndarray) -> np.ndarray:
    values = _stacked(metrics, key)
    return _mean(values, counted & np.isfinite(values))


def _stacked(metrics: list[dict[str, Any]], key: str) -> np.ndarray:
    return np.stack([f[key] for f in metrics]).astype(np.float64)


def _mean(values: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Over the steps that count; NaN where none does."""
    count = counted.sum(0)
    total = np.where(counted, values, 0.0).sum(0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _named(names: tuple[str, ...], values: Any) -> dict[str, float]:
    return {name: value.item() for name, value in zip(names, np.asarray(values), strict=True)}
