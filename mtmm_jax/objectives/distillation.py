"""Distillation: finished runs' predictions and features as targets of a model in training.

    config.teachers = {"workdirs": ["runs/large"], "temperature": 2.0, "alpha": 1.0}

Of each distilled task k, q_k is the mean of the probabilities that the teachers give at temperature
T, over those that can read the row, and

    L = hard L_k + alpha 1/K sum_k T^2 KL(q_k || softmax(z_k / T)) + sum_r w_r (1 - cos(W x_r, t_r))

(Hinton et al. 2015; features: Romero et al. 2015). Numbers are followed by squared error of the
teachers' mean, in the student's standard deviations; labels of which several hold by the mean
divergence of each. Teachers may read more than the student, so that a picture's model learns from
one that also heard its name, or less, so that one model learns from several (cross-modal: Gupta et
al. 2016): what they read is taken from the batch, whether the student has an encoder for it or not.

Teachers never change, so what they say belongs to the data: each training batch is shown to them
when it is made, in the thread that makes it and before `data.in_step`, by a program of their own
whose arguments their parameters are. The step's program holds nothing of them, and all forms of
devices and microbatches divide what they said like any label. The price: one forward pass of each
teacher a batch, on the first device of each process.
"""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mtmm_jax import registry
from mtmm_jax.assembly import Parts
from mtmm_jax.batch import Batch, Spec, Target
from mtmm_jax.data.pipeline.source import Source, Training
from mtmm_jax.model import Model, Rewrite
from mtmm_jax.objectives.teachers import (
    WHERE,
    DistillationTargets,
    Teacher,
    distillation_targets,
    feature_of,
    label_of,
    open_teachers,
    said_of,
    taught_tasks,
    widths,
)
from mtmm_jax.ranges import NonNegative, Positive
from mtmm_jax.registry import ConfigError
from mtmm_jax.tasks.terms.imitation import imitation, likeness, scaled_loss

ROOM = "teachers"  # of the learned maps between features of different widths


@dataclasses.dataclass(frozen=True)
class DistillationSettings:
    """`config.teachers`.

    Attributes:
        workdirs: the folders of finished runs.
        tasks: the student's tasks that are distilled; None: all that a teacher has too and that can
            be distilled (classes, labels, numbers).
        temperature: T.
        alpha: weight of what the teachers say.
        hard: weight of the distilled tasks' own losses, with labels; 0 does without.
        features: read -> weight: tokens of the student that are to look like the teachers' tokens
            of the same read.
        found: read -> the teachers' widths, filled in when the run begins, so that it can be
            opened where the teachers are not.
    """

    workdirs: Sequence[str]
    tasks: Sequence[str] | None = None
    temperature: Positive = 2.0
    alpha: NonNegative = 1.0
    hard: NonNegative = 1.0
    features: Mapping[str, NonNegative] | None = None
    found: Mapping[str, Any] | None = None


def read(section: Any, where: str = WHERE) -> DistillationSettings | None:
    """The section, checked by itself; None where there is none."""
    if section is None:
        return None
    like = "{'workdirs': ['runs/a']}"
    settings = DistillationSettings(
        **registry.section_of(section, DistillationSettings, where, like)
    )
    for name in ("workdirs", "tasks"):
        value = getattr(settings, name)
        if value is not None and not value:
            raise ConfigError(f"{where}.{name}: {value!r} is no list of one or more")
    return settings


@dataclasses.dataclass(frozen=True)
class DistillationSource(Source):
    """A source whose training batches also hold the teachers' predictions.

    Attributes:
        teach: `batch -> {target: {"y", "present"}}`.
    """

    teach: Callable[[Batch], dict[str, Any]] | None = None

    def train(
        self, batch_size: int, *, seed: int | None = None, shard: tuple[int, int] = (0, 1)
    ) -> Training:
        def finish(batch: Batch, rows: np.ndarray) -> Batch:
            batch = self.finish(batch, rows)
            return {**batch, "targets": {**batch["targets"], **self.teach(batch)}}

        finished = dataclasses.replace(self, finish=finish)
        return super(DistillationSource, finished).train(batch_size, seed=seed, shard=shard)


class _TeacherTargets:
    """The targets by the teachers of a run, which are opened at the first call; one program for all
    of them."""

    def __init__(
        self, opened: Callable[[], list[Teacher]], make: Callable[..., DistillationTargets]
    ) -> None:
        self._opened, self._make, self._lock = opened, make, threading.Lock()

    @functools.cached_property
    def _ready(self) -> tuple[Any, list[Any]]:
        teachers = self._opened()
        return jax.jit(self._make(teachers)), [teacher.variables for teacher in teachers]

    def __call__(self, batch: Batch) -> dict[str, Any]:
        with self._lock:
            program, variables = self._ready
        inputs = {key: batch[key] for key in ("inputs", "weight") if key in batch}
        return jax.device_get(program(variables, inputs))


def extend(section: Any, parts: Parts) -> Parts:
    """The extension `teachers`: the terms, the lessons, and the section with what was found."""
    settings, built, source, assemble = read(section), parts.model, parts.source, parts.assemble
    reads = tuple(settings.features or ())
    own = widths(built, reads, "the student")
    found, teachers = settings.found, None
    if found is None:
        if source is None:
            raise ConfigError(f"{WHERE}: the run was never started; train it first")
        teachers = open_teachers(settings.workdirs, source, assemble)
        tasks = taught_tasks(built, teachers, settings.tasks)
        if not tasks and not reads:
            raise ConfigError(
                f"{WHERE}: no task of the student is one of the teachers', and no features"
            )
        wide = {name: [] for name in reads}
        for teacher in teachers:
            for name, width in widths(teacher.model, reads, repr(teacher.path)).items():
                wide[name].append(width)
        found = {"tasks": {name: list(who) for name, who in tasks.items()}, "widths": wide}
    terms, rewrites = _terms(settings, built, found, own)
    kept = {
        name: dataclasses.replace(task, loss=scaled_loss(task, settings.hard))
        if name in found["tasks"] and settings.hard != 1
        else task
        for name, task in built.tasks.items()
    }
    model = dataclasses.replace(
        built,
        tasks=kept,
        regularisers={**built.regularisers, **terms},
        rewrites=(*built.rewrites, *rewrites),
    )
    if source is not None:
        opened = functools.partial(open_teachers, settings.workdirs, source, assemble)
        if teachers is not None:
            opened = functools.partial(list, teachers)
        source = _taught(settings, built, source, found, opened)
    config = {**parts.config, "teachers": {**section, "found": found}}
    return parts.replace(model=model, source=source, config=config)


def _terms(
    settings: DistillationSettings, built: Model, found: Mapping[str, Any], own: Mapping[str, int]
) -> tuple[dict[str, Any], list[Rewrite]]:
    """The auxiliary losses, and the maps that they learn."""
    terms, shapes = {}, {}
    for name in found["tasks"]:
        task = built.tasks[name]
        term = imitation(name, task.distilled, said_of(name), temperature=settings.temperature)
        terms[f"{WHERE}/{name}"] = (settings.alpha / len(found["tasks"]), term)
    for name, weight in (settings.features or {}).items():
        for i, width in enumerate(found["widths"][name]):
            kernel = None
            if width != own[name]:
                key = f"{name}_{i}"
                shapes[key], kernel = (own[name], width), f"{ROOM}/{key}/kernel"
            term = likeness(name, feature_of(name, i), kernel)
            terms[f"{WHERE}/features/{name}/{i}"] = (weight / len(found["widths"][name]), term)
    return terms, [_maps(shapes)] if shapes else []


def _maps(shapes: Mapping[str, tuple[int, int]]) -> Rewrite:
    """Matrices in a room of their own, which no module reads."""

    def init(key: jax.Array, params: Any) -> dict[str, Any]:
        del params
        draw = jax.nn.initializers.lecun_normal()
        keys = jax.random.split(key, len(shapes))
        pairs = zip(shapes.items(), keys, strict=True)
        return {name: {"kernel": draw(k, shape, jnp.float32)} for (name, shape), k in pairs}

    return Rewrite(ROOM, init, lambda params: params)


def _taught(
    settings: DistillationSettings,
    built: Model,
    source: Source,
    found: Mapping[str, Any],
    opened: Callable[[], list[Teacher]],
) -> DistillationSource:
    targets = {}
    for name in found["tasks"]:
        task = built.tasks[name]
        label = label_of(built, task)
        targets[said_of(name)] = Target(task.distilled.target, classes=label.classes)
    for name, several in found["widths"].items():
        for i, width in enumerate(several):
            targets[feature_of(name, i)] = Target("wave", length=width)
    plain = {
        key: value for key, value in source.spec.targets.items() if not key.startswith("distilled/")
    }
    reads, temperature = tuple(settings.features or ()), settings.temperature
    inputs = _TeacherTargets(
        opened,
        lambda known: distillation_targets(known, found["tasks"], reads, temperature),
    )
    fields = {f.name: getattr(source, f.name) for f in dataclasses.fields(Source)}
    fields["spec"] = Spec(source.spec.modalities, {**plain, **targets})
    return DistillationSource(**fields, teach=inputs)
