"""The loop around the step: data in, metrics out, checkpoints, validation, interruption."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from rich.console import Console

from mtmm_jax.batch import Spec
from mtmm_jax.devices import parallel, processes
from mtmm_jax.evaluation import Evaluator, headlines, mean_skill, trivial_results
from mtmm_jax.store.checkpoints import Checkpoints
from mtmm_jax.store.files import writing
from mtmm_jax.store.workdir import Workdir
from mtmm_jax.tasks.task import modalities_of
from mtmm_jax.training import linear_models, stopping
from mtmm_jax.training.experiment import Experiment, check_batch
from mtmm_jax.training.faults import Faults
from mtmm_jax.training.logs import Journal, Watch
from mtmm_jax.training.profiling import Meter
from mtmm_jax.training.step import TrainState
from mtmm_jax.training.step_metrics import StepMetrics
from mtmm_jax.training.stopping import Progress
from mtmm_jax.transfer import init_from


class _Nowhere:
    """The journal of the processes that do not write one."""

    def write(self, step: int, split: str, metrics: Any) -> None:
        del step, split, metrics

    def close(self) -> None:
        pass


def score(
    experiment: Experiment,
    results: Any,
    step: int | None = None,
    trivial: Callable[[], Any] | None = None,
) -> float:
    """The metric that `checkpoint.best` names: "skill", the mean over tasks of
    `evaluation.skill`; "mean", that of the headlines as they are; or one task's headline.

    A metric that is not finite is -inf, and so is every one before `optimizer.prune` is through:
    the best model would be one with all its weights.

    Args:
        experiment: whose metric it is.
        results: of the validation split.
        step: after which they are.
        trivial: gives the trivial predictor's results on that split; by default they are computed.
    """
    if _unpruned(experiment, step):
        return -np.inf
    best = experiment.config["checkpoint"]["best"]
    if best == "skill":
        known = trivial_validation(experiment) if trivial is None else trivial()
        value = mean_skill(experiment.model, results, known)
    else:
        metrics = headlines(experiment.model, results)
        value = float(np.mean(list(metrics.values()))) if best == "mean" else metrics[best]
    return value if np.isfinite(value) else -np.inf


def _unpruned(experiment: Experiment, step: int | None) -> bool:
    prune = experiment.config["optimizer"].get("prune")
    return prune is not None and step is not None and step < prune["end"]


def trivial_validation(experiment: Experiment) -> Any:
    """The results on the validation split of predictors that look at nothing."""
    return trivial_results(experiment.model, evaluation_batches(experiment, "validation"))


def evaluation_batches(experiment: Experiment, split: str) -> Iterator[Any]:
    return experiment.source.batches(split, experiment.config["evaluation"]["batch_size"])


def train(
    experiment: Experiment,
    workdir: Workdir,
    checkpoints: Checkpoints,
    console: Console,
    meter: Meter | None = None,
) -> None:
    """Trains from the latest checkpoint to the last step, or until `config.stopping` ends the run.
    Saves on the way and at the end.

    Args:
        meter: times the parts of the steps, traces those it is to, and warns of new programs.

    Raises:
        processes.Interrupted: after SIGINT or SIGTERM, when everything is saved.
        faults.Diverged: after `abort_after` steps in a row that learned nothing.
    """
    steps, devices = experiment.config["steps"], experiment.devices
    iterator = iter(
        experiment.source.train(
            experiment.config["batch_size"],
            seed=experiment.config["seed"],
            shard=parallel.shard(devices),
        )
    )
    start = processes.broadcast_from_first(checkpoints.latest() or 0)
    settings = stopping.read(experiment.config.get("stopping"))
    progress = Progress.of(checkpoints.progress(start) if start else None)
    if start >= steps or progress.ended(settings):
        return
    trivial = functools.cache(lambda: trivial_validation(experiment))
    if start:
        processes.on_primary(lambda: checkpoints.check_small(console.print), "--workdir")
        start, state, data_state = checkpoints.resume(experiment.shapes, devices, console.print)
        progress = Progress.of(checkpoints.progress(start))
        iterator.set_state(data_state)
        console.print(f"resuming from step {start}")
    else:
        state, fitted, loaded = experiment.start()
        init_from.tell(loaded, workdir, console)
        linear_models.show(fitted, experiment, workdir, console)
    evaluator = Evaluator(experiment.model, devices)
    step = parallel.wrap(experiment.step(), devices)
    if meter is not None:
        step = meter.around(step, start)
    state = parallel.replicate(state, devices)
    names = experiment.model.loss_names
    journal: Any = _Nowhere()
    if processes.is_primary():
        journal = Journal(workdir.metrics, workdir.path / "events", start)
    faults = Faults(experiment, workdir, checkpoints, iterator.get_state())
    with (
        writing(workdir.path, "Make room, and the same command resumes from the last checkpoint"),
        contextlib.closing(journal),
        Watch(console, steps, start, names) as watch,
        processes.listening() as stop,
        processes.watched(None if isinstance(devices, int) else devices.timeout) as beat,
        # Nothing waits for the device but what says so: logs, validation, checkpoints.
        jax.transfer_guard_device_to_host("disallow"),
    ):
        step_metrics = StepMetrics(experiment, iterator, journal, watch, faults, meter, start)
        late = ended = False  # whether the step before is to be reported; whether this is the last
        for number in range(start + 1, steps + 1):
            waited = time.monotonic()
            batch = next(iterator)
            step_metrics.waited(time.monotonic() - waited)
            if number == start + 1:
                check_batch(experiment, batch)
            state, outputs = step(state, batch)
            beat()
            if late:  # while the device does this step
                step_metrics.tell(number - 1)
            step_metrics.add(outputs)
            last = number == steps
            validate = number % experiment.config["evaluation"]["every"] == 0 or last
            log = number % experiment.config["evaluation"]["log_every"] == 0 or last
            log = log or (validate and settings is not None)  # it may be the last step
            if log:
                stop.agree()
            interrupted = stop.agreed
            save = number % experiment.config["checkpoint"]["every"] == 0 or validate or interrupted
            late = log and not save
            if log and save:
                step_metrics.tell(number)
            latest_score = None
            if validate:
                state = linear_models.reweigh(experiment, state)
                batches = _counted(evaluation_batches(experiment, "validation"), beat)
                results = evaluator.results(state.variables, batches)
                state = _validated(experiment, journal, watch, number, state, results)
                latest_score = score(experiment, results, number, trivial)
                if not _unpruned(experiment, number):
                    progress = progress.after(number, latest_score, settings)
                ended = progress.ended(settings) and not last
                iterator.observe(_part_scores(experiment, results))
                faults.remixed(iterator.get_state())
                step_metrics.pause()
            if save:
                whole = parallel.first(state, devices)
                checkpoints.save(whole, latest_score, iterator.get_state(), progress._asdict())
            if ended:
                named = experiment.config["checkpoint"]["best"]
                watch.say(f"stopped at step {number} of {steps}: {progress.since(named)}")
                break
            if interrupted and not last:
                checkpoints.wait()
                raise processes.Interrupted(interrupted, number)
    checkpoints.wait()


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
    metrics = headlines(experiment.model, results)
    if wanted == "losses":
        metrics = {name: results[name].get("loss", np.nan) for name in metrics}
    return _observe(experiment, state, metrics)


def _observe(experiment: Experiment, state: Any, metrics: dict[str, float]) -> TrainState:
    """Validation metrics for the rules that learn from them; between steps, on the host's time."""
    values = np.full(experiment.balancer.num_tasks, np.nan, np.float32)
    values[: len(metrics)] = [metrics[name] for name in experiment.model.tasks]
    whole = parallel.first(state, experiment.devices)
    balanced = jax.jit(experiment.balancer.observe)(whole.balancing, values)
    return state.replace(balancing=parallel.replicate(balanced, experiment.devices))


def _part_scores(experiment: Experiment, results: Any) -> np.ndarray:
    """`[S]`, for each part of the data the mean headline of the tasks that it carries."""
    metrics = headlines(experiment.model, results)
    tasks = experiment.model.tasks

    def carried(name: str, spec: Spec) -> bool:
        task = tasks[name]
        if task.target is not None:
            return task.target in spec.targets
        reads = {m for read in task.reads for m in modalities_of(read, experiment.model.encoders)}
        return reads <= set(spec.modalities)

    parts = [
        [metrics[name] for name in tasks if carried(name, spec)]
        for spec in experiment.source.carries or (experiment.source.spec,)
    ]
    return np.array([np.mean(part) if part else np.nan for part in parts])
