"""The loop around the step: data in, figures out, checkpoints, validation, interruption."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from rich.console import Console

from mtmm_jax import parallel, processes
from mtmm_jax.batch import Spec
from mtmm_jax.data.source import Training
from mtmm_jax.evaluation import Evaluator, headlines
from mtmm_jax.tasks.task import modalities_of
from mtmm_jax.training import init_from
from mtmm_jax.training.checkpoints import Checkpoints
from mtmm_jax.training.experiment import Experiment, check_batch
from mtmm_jax.training.faults import Faults, diverged
from mtmm_jax.training.logs import Journal, Watch
from mtmm_jax.training.profiling import Meter
from mtmm_jax.training.step import TrainState
from mtmm_jax.training.workdir import Workdir, writing


class _Nowhere:
    """The journal of the processes that do not write one."""

    def write(self, step: int, split: str, figures: Any) -> None:
        del step, split, figures

    def close(self) -> None:
        pass


def score(experiment: Experiment, results: Any, step: int | None = None) -> float:
    """The figure that `checkpoint.best` names: one task's headline, or the mean over tasks. Before
    `optimizer.prune` is through none is: the best model would be one with all its weights."""
    prune = experiment.config["optimizer"].get("prune")
    if prune is not None and step is not None and step < prune["end"]:
        return -np.inf
    figures = headlines(experiment.model, results)
    best = experiment.config["checkpoint"]["best"]
    value = float(np.mean(list(figures.values()))) if best == "mean" else figures[best]
    return value if np.isfinite(value) else -np.inf


def evaluation_batches(experiment: Experiment, split: str) -> Iterator[Any]:
    return experiment.source.batches(split, experiment.config["evaluation"]["batch_size"])


def train(
    experiment: Experiment,
    workdir: Workdir,
    checkpoints: Checkpoints,
    console: Console,
    meter: Meter | None = None,
) -> None:
    """Trains to the last step from wherever the run stands. Saves on the way and at the end.

    Args:
        meter: times the parts of the steps, traces those it is to, and warns of new programs.

    Raises:
        processes.Interrupted: after SIGINT or SIGTERM, when everything is saved.
        faults.Diverged: after `abort_after` steps in a row that taught nothing.
    """
    steps, devices = experiment.config["steps"], experiment.devices
    iterator = iter(
        experiment.source.train(
            experiment.config["batch_size"],
            seed=experiment.config["seed"],
            shard=parallel.shard(devices),
        )
    )
    start = processes.told(checkpoints.latest() or 0)
    if start >= steps:
        return
    if start:
        state, data_state = checkpoints.restore(start, experiment.shapes, devices)
        iterator.set_state(data_state)
        console.print(f"resuming from step {start}")
    else:
        state, loaded = experiment.begun()
        init_from.tell(loaded, workdir, console)
    evaluator = Evaluator(experiment.model, devices)
    step = parallel.wrap(experiment.step(), devices)
    if meter is not None:
        step = meter.around(step, start)
    state = parallel.replicate(state, devices)
    names = experiment.model.loss_names
    journal: Any = _Nowhere()
    if processes.leads():
        journal = Journal(workdir.metrics, workdir.path / "events", start)
    last = _Progress(start)
    faults = Faults(experiment, workdir, checkpoints, iterator.get_state())
    with (
        writing(workdir.path, "Make room, and the same command goes on from the last checkpoint"),
        contextlib.closing(journal),
        Watch(console, steps, start, names) as watch,
        processes.listening() as stop,
        processes.watched(None if isinstance(devices, int) else devices.timeout) as beat,
        # Nothing waits for the device but what says so: logs, validation, checkpoints.
        jax.transfer_guard_device_to_host("disallow"),
    ):
        pending: list[Any] = []
        for number in range(start + 1, steps + 1):
            waited = time.monotonic()
            batch = next(iterator)
            last.waited += time.monotonic() - waited
            if number == start + 1:
                check_batch(experiment, batch)
            state, figures = step(state, batch)
            beat()
            pending.append(figures)
            if number % experiment.config["evaluation"]["log_every"] == 0 or number == steps:
                told = parallel.fetch(pending, experiment.devices)
                _log(experiment, journal, watch, number, told, last, iterator, meter)
                for line in faults.look(number, told):
                    watch.say(line)
                pending = []
                stop.agree()
            latest_score = None
            if number % experiment.config["evaluation"]["every"] == 0 or number == steps:
                batches = _counted(evaluation_batches(experiment, "validation"), beat)
                results = evaluator.results(state.variables, batches)
                state = _validated(experiment, journal, watch, number, state, results)
                latest_score = score(experiment, results, number)
                iterator.observe(_part_scores(experiment, results))
                faults.remixed(iterator.get_state())
                last.pause()
            due = number % experiment.config["checkpoint"]["every"] == 0
            asked = stop.agreed
            if due or latest_score is not None or number == steps or asked:
                whole = parallel.first(state, devices)
                checkpoints.save(whole, latest_score, iterator.get_state())
            if asked and number < steps:
                checkpoints.wait()
                raise processes.Interrupted(asked, number)
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
    journal: Any,
    watch: Watch,
    number: int,
    figures: list[Any],
    last: _Progress,
    iterator: Training,
    meter: Meter | None,
) -> None:
    """Means over the steps since the last log; fetched once, so the device is rarely waited for."""
    names = experiment.model.loss_names
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
            "learning_rate": float(jax.device_get(experiment.rate(number - 1))),
            "steps_per_second": done / seconds,
            "data_wait": last.waited / seconds,
            **(meter.figures(seconds, done, last.waited) if meter is not None else {}),
            "epoch": iterator.epochs[0] if len(iterator.epochs) == 1 else list(iterator.epochs),
            **({"data_shares": list(iterator.shares)} if len(iterator.shares) > 1 else {}),
            "skipped": int(sum(f["skipped"] for f in figures)),
            "absent": _named(names, (~present).sum(0)),
            "diverged": _named(names, np.sum([diverged(f) for f in figures], axis=0)),
            **_diagnostics(names, figures),
            **_imbalance(experiment, figures),
        },
    )
    watch.update(number, mean_losses, weights)
    last.step, last.since, last.waited = number, now, 0.0


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


def _imbalance(experiment: Experiment, figures: list[dict[str, Any]]) -> dict[str, Any]:
    """What keeps the modalities in balance tells of each, averaged over the steps that have it."""
    if experiment.imbalance is None:
        return {}
    names = experiment.imbalance.modalities
    keys = [key for key in figures[0] if key.startswith("imbalance/")]
    return {key: _named(names, _finite_mean(figures, key, np.True_)) for key in keys}


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


def _counted(batches: Iterator[Any], beat: Callable[[], None]) -> Iterator[Any]:
    """The batches; each tells that the one before is done."""
    for batch in batches:
        beat()
        yield batch


def _validated(
    experiment: Experiment,
    journal: Any,
    watch: Watch,
    number: int,
    state: Any,
    results: dict[str, Any],
) -> Any:
    """Tells the results, also to the balancing rules that learn from them."""
    journal.write(number, "validation", results)
    watch.say(
        f"step {number}, validation: "
        + "  ".join(
            f"{name} {task.headline} {results[name][task.headline]:.3f}"
            for name, task in experiment.model.tasks.items()
        )
    )
    wanted = experiment.balancer.rule.observes
    if not wanted:
        return state
    figures = headlines(experiment.model, results)
    if wanted == "losses":
        figures = {name: results[name].get("loss", np.nan) for name in figures}
    return _observe(experiment, state, figures)


def _observe(experiment: Experiment, state: Any, figures: dict[str, float]) -> TrainState:
    """Validation figures for the rules that learn from them; between steps, on the host's time."""
    values = np.full(experiment.balancer.num_tasks, np.nan, np.float32)
    values[: len(figures)] = [figures[name] for name in experiment.model.tasks]
    whole = parallel.first(state, experiment.devices)
    balanced = jax.jit(experiment.balancer.observe)(whole.balancing, values)
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
