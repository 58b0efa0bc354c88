"""The teachers of a run: finished runs, checked against the data and the student, and their
targets."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mtmm_jax.batch import Batch, Modality, Target
from mtmm_jax.data.pipeline.source import Source
from mtmm_jax.model import Model
from mtmm_jax.registry import ConfigError, choose
from mtmm_jax.store.checkpoints import restore_from
from mtmm_jax.store.workdir import Workdir
from mtmm_jax.tasks.terms.term import Regulariser
from mtmm_jax.tasks.traits.distilled import Distilled
from mtmm_jax.text import tokenizer_of

WHERE = "teachers"
DistillationTargets = Callable[[Any, Batch], dict[str, Any]]


class Teacher(NamedTuple):
    """One finished run."""

    path: str
    model: Model
    variables: Any


def open_teachers(
    paths: Sequence[str], source: Source, assemble: Callable[..., Any]
) -> list[Teacher]:
    """The runs, each at its best checkpoint; refused where the data do not give what they read.

    Args:
        paths: the runs' folders.
        source: of the student's batches.
        assemble: `training.assemble`.
    """
    found = []
    for i, path in enumerate(paths):
        where = f"{WHERE}.workdirs[{i}]"
        try:
            workdir = Workdir.at(path)
            run = assemble({**workdir.config(), "devices": 1}, workdir.spec())
            _, state = restore_from(workdir, "best", run.shapes, 1, "--workdir")
        except ConfigError as error:
            raise ConfigError(f"{where}: {path!r}: {error}") from error
        model = run.model
        for name in model.encoders:
            if name not in source.spec.modalities:
                raise ConfigError(
                    f"{where}: {path!r} reads {name!r}, which the data do not have; they have: "
                    f"{', '.join(source.spec.modalities)}"
                )
            theirs, own = model.spec.modalities[name], source.spec.modalities[name]
            _same_modality(name, theirs, own, f"{where}: {path!r}")
            kept = tokenizer_of(source.assets, name)
            if own.is_a("text") and kept is not None and kept != workdir.tokenizer(name):
                raise ConfigError(
                    f"{where}: {path!r} reads {name!r} with another tokenizer than that of the data"
                )
        found.append(Teacher(str(path), model, state.variables))
    return found


def _same_modality(name: str, theirs: Modality, own: Modality, where: str) -> None:
    for key in ("kind", "shape", "dtype", "vocabulary", "rate", "names"):
        a, b = getattr(theirs, key), getattr(own, key)
        if a != b:
            raise ConfigError(f"{where}: its {name!r} has {key} {a!r}, that of the data {b!r}")


def taught_tasks(
    student: Model, teachers: Sequence[Teacher], wanted: Sequence[str] | None
) -> dict[str, tuple[int, ...]]:
    """Task -> the teachers that teach it; who has the task and means something else is refused."""
    for name in wanted or ():
        choose(name, student.tasks, f"{WHERE}.tasks", "task")
    found: dict[str, tuple[int, ...]] = {}
    for name, task in student.tasks.items():
        form = task.distilled
        if wanted is not None and name not in wanted:
            continue
        if form is None:
            if wanted is not None:
                fitting = [n for n, t in student.tasks.items() if t.distilled is not None]
                raise ConfigError(
                    f"{WHERE}.tasks: {name!r} is a {task.kind}, which cannot be distilled; "
                    f"choices: {', '.join(fitting) or 'none'}"
                )
            continue
        mine = tuple(i for i, teacher in enumerate(teachers) if name in teacher.model.tasks)
        for i in mine:
            _same_task(name, student, teachers[i], form)
        if wanted is not None and not mine:
            has = [f"{t.path}: {', '.join(t.model.tasks)}" for t in teachers]
            raise ConfigError(f"{WHERE}.tasks: no teacher has {name!r}; {'; '.join(has)}")
        if mine:
            found[name] = mine
    return found


def label_of(model: Model, task: Any) -> Target | None:
    """The `Target` of a task's label; None of a task without one."""
    return model.spec.targets.get(task.target)


def _same_task(name: str, student: Model, teacher: Teacher, form: Distilled) -> None:
    mine, theirs = student.tasks[name], teacher.model.tasks[name]
    where = f"{WHERE}: {teacher.path!r}: its task {name!r}"
    other = theirs.distilled
    if other is None or other.target != form.target:
        raise ConfigError(f"{where} is a {theirs.kind}, the student's a {mine.kind}")
    if theirs.target != mine.target:
        raise ConfigError(f"{where} has the label {theirs.target!r}, the student's {mine.target!r}")
    a, b = label_of(teacher.model, theirs).classes, label_of(student, mine).classes
    if a != b:
        differ = sorted(set(a) ^ set(b))[:4] or "their order"
        raise ConfigError(
            f"{where} has {len(a)} classes, the student's {len(b)}; they differ in {differ}"
        )


def _reading(model: Model, reads: Sequence[str]) -> Model:
    """The model, whose trunk also gives what these reads are."""
    asks = Regulariser(lambda view: (jnp.float32(0), jnp.float32(0)), reads=tuple(reads))
    return dataclasses.replace(model, regularisers={"asked": (0.0, asks)}, added=())


def widths(model: Model, reads: Sequence[str], what: str) -> dict[str, int]:
    """Read -> the width of its tokens, found without computing anything."""
    fused = [read for read in model.fusions if model.fusions[read].stage != "decision"]
    for name in reads:
        choose(name, (*model.encoders, *fused), f"{WHERE}.features: {what}", "read")
    if not reads:
        return {}
    reading = _reading(model, reads)
    inputs = model.spec.example(2)["inputs"]
    shared, _ = jax.eval_shape(lambda variables: reading.trunk(variables, inputs), model.shapes)
    return {name: shared[name].values.shape[-1] for name in reads}


def distillation_targets(
    teachers: Sequence[Teacher],
    tasks: Mapping[str, Sequence[int]],
    features: Sequence[str],
    temperature: float,
) -> DistillationTargets:
    """`([variables], batch) -> {target: {"y", "present"}}`: the teachers' predictions for a batch.

    Pure, for `jit`. The mean is over the teachers that can read a row; where none can, or the row
    weighs nothing, `present` is False.
    """
    models = [_reading(t.model, features) if features else t.model for t in teachers]

    def teach(variables: Sequence[Any], batch: Batch) -> dict[str, Any]:
        rows = next(iter(batch["inputs"].values()))["present"]
        counts = jnp.asarray(batch.get("weight", jnp.ones(rows.shape))) > 0
        said: dict[str, list[tuple[jax.Array, jax.Array]]] = {name: [] for name in tasks}
        targets: dict[str, Any] = {}
        for i, (model, own) in enumerate(zip(models, variables, strict=True)):
            if not set(model.encoders) & set(batch["inputs"]):
                continue
            shared, _ = model.trunk(own, batch["inputs"])
            predictions, _ = model.readout(own, dict.fromkeys(model.tasks, shared))
            present = model.present(batch)
            for name, members in tasks.items():
                if i in members:
                    task = model.tasks[name]
                    here = jnp.stack([present[read] for read in task.reads]).all(0) & counts
                    y = task.distilled.soft_label(predictions[name], temperature)
                    said[name].append((y, here))
            for name in features:
                tokens = shared[name]
                seen = tokens.mean().astype(jnp.float32)
                targets[feature_of(name, i)] = {"y": seen, "present": tokens.present & counts}
        for name, parts in said.items():
            if parts:
                targets[said_of(name)] = _mean(parts)
        return targets

    return teach


def _mean(parts: Sequence[tuple[jax.Array, jax.Array]]) -> dict[str, jax.Array]:
    total, count = jnp.float32(0), jnp.float32(0)
    for y, here in parts:
        wide = here.reshape(-1, *[1] * (y.ndim - 1))
        total = total + jnp.where(wide, y, 0.0)
        count = count + wide.astype(jnp.float32)
    return {
        "y": total / jnp.maximum(count, 1.0),
        "present": jnp.stack([h for _, h in parts]).any(0),
    }


def said_of(task: str) -> str:
    """The target under which a batch has the distilled predictions of a task."""
    return f"distilled/{task}"


def feature_of(name: str, teacher: int) -> str:
    """The target under which a batch has a teacher's pooled tokens of a read."""
    return f"distilled/features/{name}/{teacher}"
