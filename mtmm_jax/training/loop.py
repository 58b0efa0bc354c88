"""The loop around the step: data in, figures out, checkpoints, validation, interruption."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from rich.console import Console

from mtmm_jax import parallel
from mtmm_jax.batch import Spec
from mtmm_jax.data.source import Training
from mtmm_jax.evaluation import Evaluator, headlines
from mtmm_jax.registry import ConfigError
from mtmm_jax.tasks.task import modalities_of
from mtmm_jax.training.checkpoints import Checkpoints
from mtmm_jax.training.experiment import Experiment, check_batch
from mtmm_jax.training.logs import Journal, Watch
from mtmm_jax.training.step import TrainState
from mtmm_jax.training.workdir import Workdir


class Interrupted(Exception):
    """The run was asked to stop, and has saved. `signal` says by what."""

    def __init__(self, number: int, step: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name} after step {step}")
        self.signal, self.step = number, step


@dataclasses.dataclass
class _Stop:
    """Set by SIGINT or SIGTERM; the loop looks at it between steps."""

    signal: int | None = None


@contextlib.contextmanager
def _listening() -> Iterator[_Stop]:
    stop = _Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def note(number: int, frame: Any) -> None:
        del frame
        if stop.signal is not None:  # asked twice: do not insist on saving
            raise KeyboardInterrupt
        stop.signal = number

    old = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def score(experiment: Experiment, results: Any) -> float:
    """The figure that `checkpoint.best` names: one task's headline, or the mean over tasks."""
    figures = headlines(experiment.model, results)
    best = experiment.config["checkpoint"]["best"]
    value = float(np.mean(list(figures.values()))) if best == "mean" else figures[best]
    return value if np.isfinite(value) else -np.inf


def evaluation_batches(experiment: Experiment, split: str) -> Iterator[Any]:
    return experiment.source.batches(split, experiment.config["evaluation"]["batch_size"])


def train(
    experiment: Experiment, workdir: Workdir, checkpoints: Checkpoints, console: Console
) -> None:
    """Trains to the last step from wherever the run stands. Saves on the way and at the end.

    Raises:
        Interrupted: after SIGINT or SIGTERM, when everything is saved.
    """
    steps = experiment.config["steps"]
    iterator = iter(
        experiment.source.train(experiment.config["batch_size"], seed=experiment.config["seed"])
    )
    state = experiment.init()
    start = checkpoints.latest() or 0
    if start:
        state, data_state = checkpoints.restore(start, state)
        iterator.set_state(data_state)
        console.print(f"resuming from step {start}")
    if start >= steps:
        return
    evaluator = Evaluator(experiment.model, experiment.devices)
    step = parallel.wrap(experiment.step(), experiment.devices)
    state = parallel.replicate(state, experiment.devices)
    names = tuple(experiment.model.tasks)
    journal = Journal(workdir.metrics, workdir.path / "events", start)
    last = _Progress(start)
    with (
        contextlib.closing(journal),
        Watch(console, steps, start, names) as watch,
        _listening() as stop,
    ):
        pending: list[Any] = []
        for number in range(start + 1, steps + 1):
            waited = time.monotonic()
            batch = next(iterator)
            last.waited += time.monotonic() - waited
            if number == start + 1:
                check_batch(experiment, batch)
            state, figures = step(state, batch)
            pending.append(figures)
            if number % experiment.config["evaluation"]["log_every"] == 0 or number == steps:
                _log(experiment, journal, watch, number, pending, last, iterator)
                pending = []
            latest_score = None
            if number % experiment.config["evaluation"]["every"] == 0 or number == steps:
                state, results = _validate(experiment, evaluator, journal, watch, number, state)
                latest_score = score(experiment, results)
                iterator.observe(_part_scores(experiment, results))
                last.pause()
            due = number % experiment.config["checkpoint"]["every"] == 0
            if due or latest_score is not None or number == steps or stop.signal:
                whole = parallel.first(state, experiment.devices)
                checkpoints.save(whole, latest_score, iterator.get_state())
            if stop.signal is not None and number < steps:
                checkpoints.wait()
                raise Interrupted(stop.signal, number)
    checkpoints.wait()


@dataclasses.dataclass
class _Progress:
    """Since the last log: the step, when, and the seconds spent waiting for data."""

    step: int
    waited: float = 0.0
    since: float = dataclasses.field(default_factory=time.monotonic)

    def pause(self) -> None:
        """Validation is not training time."""
        self.since, self.waited = time.monotonic(), 0.0


def _log(
    experiment: Experiment,
    journal: Journal,
    watch: Watch,
    number: int,
    pending: list[Any],
    last: _Progress,
    iterator: Training,
) -> None:
    """Means over the steps since the last log; fetched once, so the device is rarely waited for."""
    figures = jax.device_get(pending)
    if experiment.devices > 1:
        figures = jax.tree.map(lambda x: x[0], figures)
    names = tuple(experiment.model.tasks)
    present = np.stack([f["present"] for f in figures])
    mean_losses = _mean(_stacked(figures, "losses"), present)
    weights = np.stack([f["weights"] for f in figures]).mean(0)
    now = time.monotonic()
    seconds = max(now - last.since, 1e-9)
    done = max(number - last.step, 1)
    journal.write(
        number,
        "train",
        {
            "loss": _named(names, mean_losses),
            "weight": _named(names, weights),
            "learning_rate": float(experiment.rates(number - 1)),
            "steps_per_second": done / seconds,
            "data_wait": last.waited / seconds,
            "epoch": iterator.epochs[0] if len(iterator.epochs) == 1 else list(iterator.epochs),
            **({"data_shares": list(iterator.shares)} if len(iterator.shares) > 1 else {}),
            "skipped": int(sum(f["skipped"] for f in figures)),
            "absent": _named(names, (~present).sum(0)),
            **_diagnostics(names, figures),
        },
    )
    watch.update(number, mean_losses, weights)
    last.step, last.since, last.waited = number, now, 0.0
    if not np.isfinite(mean_losses[present.any(0)]).all():
        bad = [
            n
            for n, v, p in zip(names, mean_losses, present.any(0), strict=True)
            if p and not np.isfinite(v)
        ]
        first = number - len(figures) + 1
        raise ConfigError(
            f"tasks.{bad[0]}: the loss is not finite between steps {first} and {number}; "
            "lower optimizer.learning_rate or set optimizer.clip"
        )


def _diagnostics(names: tuple[str, ...], figures: list[dict[str, Any]]) -> dict[str, Any]:
    """What gradient methods tell, averaged: scalars, the tasks' gradient norms, their cosines.

    A task counts in the steps that it is present in, a pair in those that both are, and the
    scalars, which are about pairs, in the steps that have one. Figures that are not finite,
    as in a skipped step, count nowhere.
    """
    if "cosines" not in figures[0]:
        return {}
    present = np.stack([f["present"] for f in figures])
    together = present[:, :, None] & present[:, None, :]
    finite = np.isfinite(_stacked(figures, "norms")).all(1)  # NaN < 0 would be no conflict
    paired = (present.sum(1) > 1) & finite
    scalars = [k for k in figures[0] if k != "skipped" and np.ndim(figures[0][k]) == 0]
    return {
        **{key: _finite_mean(figures, key, paired).item() for key in scalars},
        "gradient_norm": _named(names, _finite_mean(figures, "norms", present)),
        "cosines": {
            "tasks": list(names),
            "mean": _finite_mean(figures, "cosines", together).round(3).tolist(),
        },
    }


def _finite_mean(figures: list[dict[str, Any]], key: str, counted: np.ndarray) -> np.ndarray:
    values = _stacked(figures, key)
    return _mean(values, counted & np.isfinite(values))


def _stacked(figures: list[dict[str, Any]], key: str) -> np.ndarray:
    return np.stack([f[key] for f in figures]).astype(np.float64)


def _mean(values: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Over the steps that count; NaN where none does."""
    count = counted.sum(0)
    total = np.where(counted, values, 0.0).sum(0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _named(names: tuple[str, ...], values: Any) -> dict[str, float]:
    return {name: value.item() for name, value in zip(names, np.asarray(values), strict=True)}


def _validate(
    experiment: Experiment,
    evaluator: Evaluator,
    journal: Journal,
    watch: Watch,
    number: int,
    state: Any,
) -> tuple[Any, dict[str, Any]]:
    results = evaluator.results(state.variables, evaluation_batches(experiment, "validation"))
    journal.write(number, "validation", results)
    watch.say(
        f"step {number}, validation: "
        + "  ".join(
            f"{name} {task.headline} {results[name][task.headline]:.3f}"
            for name, task in experiment.model.tasks.items()
        )
    )
    if experiment.balancer.rule.observes == "metrics":
        state = _observe(experiment, state, headlines(experiment.model, results))
    return state, results


def _observe(experiment: Experiment, state: Any, figures: dict[str, float]) -> TrainState:
    """Validation figures for the rules that learn from them; between steps, on the host's time."""
    values = np.asarray([figures[name] for name in experiment.model.tasks], np.float32)
    whole = parallel.first(state, experiment.devices)
    balanced = experiment.balancer.observe(whole.balancing, values)
    return state.replace(balancing=parallel.replicate(balanced, experiment.devices))


def _part_scores(experiment: Experiment, results: Any) -> np.ndarray:
    """`[S]`, for each part of the data the mean headline of the tasks that it carries."""
    figures = headlines(experiment.model, results)
    tasks = experiment.model.tasks

    def carried(name: str, spec: Spec) -> bool:
        task = tasks[name]
        if task.target is not None:
            return task.target in spec.targets
        reads = {m for read in task.reads for m in modalities_of(read, experiment.model.encoders)}
        return reads <= set(spec.modalities)

    parts = [
        [figures[name] for name in tasks if carried(name, spec)]
        for spec in experiment.source.carries or (experiment.source.spec,)
    ]
    return np.array([np.mean(part) if part else np.nan for part in parts])
