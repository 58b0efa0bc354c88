"""Decision fusion of finished runs: each predicts, and y = f(y_1, .., y_M), f of `DECISIONS`.

The runs may have other modalities, encoders and balancing; they have tasks in common, whose labels
mean the same. A run abstains where nothing that the task reads in it is there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from mtmm_jax import registry
from mtmm_jax.fusion import DECISIONS
from mtmm_jax.inference.finished import Finished, open_run
from mtmm_jax.inference.manifest_batches import ManifestBatches, batches_of
from mtmm_jax.inference.prediction import absent
from mtmm_jax.model import Model
from mtmm_jax.registry import ConfigError
from mtmm_jax.runs.votes import Votes
from mtmm_jax.tasks.task import Task

_MEANING = ("kind", "classes", "mean", "std", "length", "rate", "shape")


@dataclasses.dataclass(frozen=True, eq=False)
class Ensemble:
    """Finished runs and how their predictions are fused.

    Attributes:
        rule: the chosen one of `DECISIONS`.
        names: of the runs, their folders.
        runs: opened at their best checkpoints, on one device.
        rules: task -> a module of `DECISIONS`.
        shapes: task -> the shapes of a prediction for one row, the same in all runs.
        left_out: task -> why it is not fused.
        params: task -> the parameters of its rule; {} for rules without any.
    """

    rule: str
    names: tuple[str, ...]
    runs: tuple[Finished, ...]
    rules: Mapping[str, Any]
    shapes: Mapping[str, Any]
    left_out: Mapping[str, str]
    params: Mapping[str, Any]

    @property
    def used(self) -> dict[str, str]:
        """Task -> the rule that fuses it."""
        return {
            task: next(name for name, entry in DECISIONS.items() if isinstance(module, entry))
            for task, module in self.rules.items()
        }

    @property
    def model(self) -> Model:
        """The first run's, with the fused tasks only: their labels, metrics and words."""
        whole = self.runs[0].experiment.model
        return dataclasses.replace(whole, tasks={name: whole.tasks[name] for name in self.rules})

    @cached_property
    def voters(self) -> tuple[Callable[[Any, Any], Any], ...]:
        """For each run: `(variables, batch) -> ({task: [B, P]}, {task: present [B]})`, compiled."""
        return tuple(
            jax.jit(partial(_votes, run.experiment.model, tuple(self.rules))) for run in self.runs
        )

    @cached_property
    def fuse(self) -> Callable[[Any, Any, Any], dict[str, Any]]:
        """`(params, {task: [B, M, P]}, {task: [B, M]}) -> {task: prediction}`, compiled."""

        @jax.jit
        def fused(params: Any, values: Any, present: Any) -> dict[str, Any]:
            flat = {
                name: rule.apply({"params": params[name]}, values[name], present[name])
                for name, rule in self.rules.items()
            }
            return {name: self.rebuilt(name, values) for name, values in flat.items()}

        return fused

    def rebuilt(self, task: str, flat: jax.Array) -> Any:
        """`[B, P]` as predictions of that task."""
        one = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), self.shapes[task])
        return jax.vmap(ravel_pytree(one)[1])(flat)


def open_runs(paths: Sequence[str | Path], rule: str = "mean") -> Ensemble:
    """An ensemble of finished runs.

    Args:
        paths: the runs' folders.
        rule: of `DECISIONS`. "product" and "max" are of classes, and "learned" would undo the order
            of an ordinal task's numbers: tasks of other kinds are fused by "mean" then.
    """
    registry.choose(rule, DECISIONS, "--rule", "rule")
    names = tuple(str(path) for path in paths)
    if len(set(names)) < 2 or len(set(names)) < len(names):
        raise ConfigError(f"--workdirs: {','.join(names)}: needs two or more different runs")
    runs = tuple(open_run(path) for path in names)
    fusable, left_out = _common(names, runs)
    shapes = _shapes(names, runs, tuple(fusable))
    rules = {}
    for name, task in fusable.items():
        fitting = task.traits.class_logits or not DECISIONS[rule].of_classes
        used = rule if fitting and not (rule == "learned" and task.traits.ordered) else "mean"
        rules[name] = DECISIONS[used](names)
    return Ensemble(rule, names, runs, rules, shapes, left_out, {task: {} for task in rules})


def _common(names: Sequence[str], runs: Sequence[Finished]) -> tuple[dict[str, Task], dict]:
    """The tasks to fuse, as the first run has them, and why others are not."""
    models = [run.experiment.model for run in runs]
    fusable: dict[str, Task] = {}
    left_out: dict[str, str] = {}
    for name in dict.fromkeys(task for model in models for task in model.tasks):
        lacking = [n for n, m in zip(names, models, strict=True) if name not in m.tasks]
        if lacking:
            left_out[name] = f"{', '.join(lacking)} has no such task"
            continue
        task = models[0].tasks[name]
        if not task.traits.averages:
            left_out[name] = f"a {task.kind} predicts nothing that could be averaged"
            continue
        for path, run in zip(names[1:], runs[1:], strict=True):
            _check_same(name, (names[0], runs[0]), (path, run))
        fusable[name] = task
    if not fusable:
        reasons = "; ".join(f"{task}: {why}" for task, why in left_out.items())
        raise ConfigError(f"--workdirs: no task of {', '.join(names)} can be fused: {reasons}")
    return fusable, left_out


def _check_same(task: str, one: tuple[str, Finished], other: tuple[str, Finished]) -> None:
    """Raises a `ConfigError` where a task's prediction means something else in another run."""
    (first, a), (path, b) = one, other
    x, y = (run.experiment.model.tasks[task] for run in (a, b))
    compared = {"kind": (x.kind, y.kind), "target": (x.target, y.target)}
    labels = [run.workdir.spec().targets[t.target] for run, t in ((a, x), (b, y))]
    compared |= {f"label's {key}": tuple(getattr(t, key) for t in labels) for key in _MEANING}
    for what, (mine, theirs) in compared.items():
        if mine != theirs:
            raise ConfigError(
                f"--workdirs: tasks.{task}: its {what} is {mine!r} in {first}, {theirs!r} in {path}"
            )


def _shapes(
    names: Sequence[str], runs: Sequence[Finished], tasks: tuple[str, ...]
) -> dict[str, Any]:
    """Task -> the shapes of a prediction for one row; a `ConfigError` where runs differ."""
    found: list[dict[str, Any]] = []
    for path, run in zip(names, runs, strict=True):
        model = run.experiment.model
        inputs = model.spec.example(1)["inputs"]
        shapes = jax.eval_shape(partial(_predictions, model, tasks), run.variables, inputs)
        row = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape[1:], s.dtype), shapes)
        found.append(row)
        for task in tasks:
            if row[task] != found[0][task]:
                raise ConfigError(
                    f"--workdirs: tasks.{task}: its head predicts {found[0][task]} in {names[0]}, "
                    f"{row[task]} in {path}"
                )
    return found[0]


def _predictions(model: Model, tasks: Sequence[str], variables: Any, inputs: Any) -> dict[str, Any]:
    predictions, _ = model(variables, inputs)
    return {task: predictions[task] for task in tasks}


def _votes(model: Model, tasks: Sequence[str], variables: Any, batch: Any) -> tuple[dict, dict]:
    """One run's predictions, flattened, and the rows in which it has something to go by."""
    predictions = _predictions(model, tasks, variables, batch["inputs"])
    there = model.present(batch)
    values = {t: jax.vmap(lambda p: ravel_pytree(p)[0])(p) for t, p in predictions.items()}
    present = {t: jnp.stack([there[r] for r in model.tasks[t].reads]).all(0) for t in tasks}
    return values, present


def predict(
    ensemble: Ensemble, inputs: Sequence[Mapping[str, Any]], size: int = 1
) -> Iterator[dict[str, Any]]:
    """For each row, task -> the fused prediction, or None where no run has what it reads.

    Args:
        ensemble: the runs.
        inputs: for each run what it is shown, as the inputs of a batch.
        size: rows of the batch.
    """
    predictions = []
    for voter, run, given in zip(ensemble.voters, ensemble.runs, inputs, strict=True):
        whole = {"inputs": {**absent(run, size), **given}}
        predictions.append(jax.device_get(voter(run.variables, whole)))
    votes = Votes.of(predictions, {})
    fused = jax.device_get(ensemble.fuse(ensemble.params, votes.values, votes.present))
    there = {task: here.any(1) for task, here in votes.present.items()}
    for i in range(size):
        yield {
            task: jax.tree.map(lambda x, i=i: x[i], fused[task]) if there[task][i] else None
            for task in ensemble.rules
        }


def answers(ensemble: Ensemble, prediction: Mapping[str, Any]) -> dict[str, Any]:
    """`{task: what a person reads}` of a row's fused predictions."""
    tasks = ensemble.model.tasks
    decoded: dict[str, Any] = {
        name: tasks[name].decode(one) if one is not None else {"needs": list(tasks[name].reads)}
        for name, one in prediction.items()
    }
    return decoded | {name: {"left out": why} for name, why in ensemble.left_out.items()}


def ask_rows(
    ensemble: Ensemble, manifests: Sequence[ManifestBatches], size: int
) -> Iterator[tuple[int, dict[str, Any]]]:
    """`(row, answers)` of the rows that can be used, in order; one compile for each run.

    Args:
        ensemble: the runs.
        manifests: of each of them, by `requests.open_all`.
        size: rows at a time.
    """
    for rows, inputs in batches_of(manifests, size):
        for row, prediction in zip(rows.tolist(), predict(ensemble, inputs, size), strict=False):
            if row not in manifests[0].bad:
                yield row, answers(ensemble, prediction)
