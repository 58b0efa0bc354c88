"""Divergence: the batches are kept for replay, and a run that learns nothing any more stops.

Nothing here waits for the device: the metrics are looked at where the loop has fetched them to log,
and a batch, which depends on its place only, is made a second time.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from mtmm_jax.devices import parallel, processes
from mtmm_jax.encoders import backbones
from mtmm_jax.registry import ConfigError
from mtmm_jax.store.checkpoints import Checkpoints
from mtmm_jax.store.config import OPTIONAL
from mtmm_jax.store.files import read_npz, understood, write_npz
from mtmm_jax.store.workdir import Workdir
from mtmm_jax.training.experiment import Experiment, assemble, build_source


class Diverged(ConfigError):
    """The run learns nothing any more. Commands exit with 2, as for other bad input."""


def diverged(metrics: Mapping[str, Any]) -> np.ndarray:
    """`[K]` bool: which tasks had labels in a step, and no finite loss or gradient.

    An absent task has loss 0 and is not present; one that is not present in spite of its loss was
    left out for what its gradient is.
    """
    losses = np.asarray(metrics["losses"], np.float32)
    return ~np.isfinite(losses) | (~np.asarray(metrics["present"]) & (losses != 0))


def _lost(metrics: Mapping[str, Any]) -> bool:
    """Whether nothing is learned from a step: its update was skipped, or all tasks in it
    diverged."""
    bad = diverged(metrics)
    return bool(metrics["skipped"] or (bad.any() and not (metrics["present"] & ~bad).any()))


class Faults:
    """Looks through the metrics of all steps, in order.

    A step is lost where its update was not finite, and therefore skipped, or where every task that
    had labels diverged; `abort_after` of them in a row, over any number of log intervals, end the
    run. The first `dumps` batches in which something diverged are kept, and that with which such a
    row of lost steps began as well.

    Args:
        experiment: with its source.
        workdir: the batches go to `diverged/step-N.npz` in it.
        checkpoints: of the run, for what to go back to.
        mixed: the state of the data's iterator, before the first step that is looked at.
    """

    def __init__(
        self, experiment: Experiment, workdir: Workdir, checkpoints: Checkpoints, mixed: Any
    ) -> None:
        self._experiment, self._workdir, self._checkpoints = experiment, workdir, checkpoints
        config = {**OPTIONAL, **experiment.config}
        self._limit, self._room = config["abort_after"], config["dumps"]
        self._names = experiment.model.loss_names
        self._mixed = [mixed]
        self._streak: list[tuple[int, Mapping[str, Any]]] = []

    def remixed(self, mixed: Any) -> None:
        """The shares of the parts of the data may have changed: from here on they are these."""
        self._mixed.append(mixed)

    def look(self, number: int, steps: Sequence[Mapping[str, Any]]) -> list[str]:
        """Checks the steps up to `number`; returns lines to print.

        Raises:
            Diverged: at the last of `abort_after` lost steps in a row.
        """
        lines = []
        for step, metrics in enumerate(steps, number - len(steps) + 1):
            if diverged(metrics).any() or metrics["skipped"]:
                lines += self._keep(step, metrics, self._room)
            if self._limit is None:
                continue
            self._streak = [*self._streak, (step, metrics)] if _lost(metrics) else []
            if len(self._streak) >= self._limit:
                raise Diverged(self._goodbye())
        return lines

    def _bad(self, metrics: Mapping[str, Any]) -> list[str]:
        return [name for name, bad in zip(self._names, diverged(metrics), strict=True) if bad]

    def _keep(self, step: int, metrics: Mapping[str, Any], room: int) -> list[str]:
        """Writes the batch if fewer than `room` are there."""
        path, bad = _path(self._workdir, step), self._bad(metrics)
        if not processes.is_primary() or path.exists() or len(_kept(self._workdir)) >= room:
            return []
        losses = np.asarray(metrics["losses"], np.float64).tolist()
        about = {
            "step": step,
            "seed": self._experiment.config["seed"],
            "tasks": bad,
            "skipped": bool(metrics["skipped"]),
            "losses": dict(zip(self._names, losses, strict=True)),
        }
        arrays = {f"batch/{name}": x for name, x in _flat(self.batch(step)).items()}
        path.parent.mkdir(exist_ok=True)
        write_npz(path, {"about": np.array(json.dumps(about)), **arrays})
        return [f"step {step}: {_what(bad)}; its batch is in {path}"]

    def batch(self, step: int) -> Any:
        """The whole batch of a step that is past, made once more."""
        config = self._experiment.config
        source = dataclasses.replace(self._experiment.source, workers=0)
        iterator = source.train(config["batch_size"], seed=config["seed"])
        held = [mixed for mixed in self._mixed if mixed["step"] < step][-1]
        iterator.set_state({**held, "step": step - 1})
        return next(iterator)

    def _goodbye(self) -> str:
        (first, metrics), last = self._streak[0], self._streak[-1][0]
        if self._room:
            self._keep(first, metrics, self._room + 1)
        self._checkpoints.wait()
        saved = self._checkpoints.steps()
        before = [step for step in saved if step < first] or saved
        back = f"go back to checkpoint {before[-1]}" if before else "no checkpoint is there"
        others = f" (there: {', '.join(map(str, saved))})" if len(saved) > 1 else ""
        dump = _path(self._workdir, first)
        where = f"its first batch is in {dump} (training.faults.replay); " if dump.exists() else ""
        bad = dict.fromkeys(name for _, metrics in self._streak for name in self._bad(metrics))
        return (
            f"abort_after: {len(self._streak)} steps in a row, {first} to {last}, learned nothing: "
            f"{_what(bad)}; {where}{back}{others} in {self._workdir.checkpoints}. "
            "Lower optimizer.learning_rate or set optimizer.clip"
        )


def _what(tasks: Iterable[str]) -> str:
    found = ", ".join(tasks)
    return f"not finite: {found}" if found else "the losses were finite, and the update was not"


def _kept(workdir: Workdir) -> list[int]:
    """The steps whose batches are there."""
    return sorted(int(p.stem.partition("-")[2]) for p in workdir.diverged.glob("step-*.npz"))


def _path(workdir: Workdir, step: int) -> Path:
    return workdir.diverged / f"step-{step}.npz"


def _flat(batch: Any) -> dict[str, np.ndarray]:
    return traverse_util.flatten_dict(jax.tree.map(np.asarray, batch), sep="/")


@dataclasses.dataclass(frozen=True)
class Replay:
    """A step that diverged, done again.

    Attributes:
        step: its number.
        start: the checkpoint from which the way to it was gone again; 0 is the beginning.
        tasks: which were not finite.
        batch: what the step was given.
        state: before it.
        recorded: the losses that the run had, by task.
        losses: those of the replay.
        metrics: all metrics of the replayed step.
    """

    step: int
    start: int
    tasks: tuple[str, ...]
    batch: Any
    state: Any
    recorded: dict[str, float]
    losses: dict[str, float]
    metrics: dict[str, Any]


def replay(path: str | Path, step: int, trust_paths: bool = False) -> Replay:
    """Does a step that diverged again, on one device, from the nearest checkpoint before it.

        again = replay("runs/emoji", 31)
        again.tasks                        # ("year",)
        again.batch["targets"]["year"]     # what it was made of
        again.losses, again.recorded       # the same, to the bit on the device of the run

    The steps between the checkpoint and this one are trained again. They are what they were unless
    a validation between them changed shares of the data or weights of the tasks, and its checkpoint
    is gone.

    Args:
        path: the workdir.
        step: of a file `diverged/step-N.npz` in it.
        trust_paths: whether paths in the config of a run that this user did not make are followed.
    """
    workdir = Workdir.at(path)
    about, batch = _read(workdir, step)
    stored = workdir.config()
    workdir.check_paths(stored, trust_paths)
    backbones.check_kept(workdir.section("model").get("encoders"))
    experiment = assemble({**stored, "devices": 1}, source=build_source(stored, workdir))
    checkpoints = Checkpoints(workdir.checkpoints, stored["checkpoint"]["keep"])
    try:
        start = max((saved for saved in checkpoints.steps() if saved < step), default=0)
        iterator = experiment.source.train(stored["batch_size"], seed=stored["seed"])
        if start:
            state, mixed = checkpoints.restore(start, experiment.shapes)
            iterator.set_state(mixed)
        else:
            state = experiment.init()
    finally:
        checkpoints.close()
    one = parallel.wrap(experiment.step(), 1, donate=False)
    for _ in range(start + 1, step):
        state, _ = one(state, next(iterator))
    metrics = jax.device_get(one(state, batch)[1])
    losses = np.asarray(metrics["losses"], np.float64).tolist()
    return Replay(
        step=step,
        start=start,
        tasks=tuple(about["tasks"]),
        batch=batch,
        state=state,
        recorded=about["losses"],
        losses=dict(zip(experiment.model.loss_names, losses, strict=True)),
        metrics=metrics,
    )


def _read(workdir: Workdir, step: int) -> tuple[dict[str, Any], Any]:
    path = _path(workdir, step)
    if not path.exists():
        there = ", ".join(map(str, _kept(workdir))) or "none"
        raise ConfigError(f"step: no batch of step {step} in {workdir.diverged}; there: {there}")
    arrays = read_npz(workdir.file(f"diverged/{path.name}"), "remove it")
    with understood(path, "remove it"):
        about = json.loads(str(arrays.pop("about")))
    named = {name.removeprefix("batch/"): x for name, x in arrays.items()}
    return about, traverse_util.unflatten_dict(named, sep="/")
