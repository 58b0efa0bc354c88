"""Modality imbalance: what helps the modalities that a leading one leaves behind.

`config.optimizer.imbalance` = {"kind": "ogm_ge", "task": "category", "alpha": 0.3}, with any
optimiser; the task is a classification that reads a fusion and has heads on each modality alone:

    config.tasks.category = {"kind": "classification", "unimodal": True}

`unimodal: True` trains the encoders by these heads too, balanced like tasks; "probe" lets them
score only: they read tokens through which no gradient goes back. A rule acts on all of an encoder's
gradient, whichever task it comes from, after the sum over devices and before the optimiser.
Averaging losses (`balancing="equal"`) counts the heads as tasks; `reduction="sum"` does not.

    built, against, make = prepare(config, built, steps)
    balancer = make(balancing_config, len(built.tasks))
    init_state(built, balancer, optimizer, seed, hooks=[against.hook])
    make_step(built, balancer, optimizer, seed=seed, hooks=[against.hook])
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from mtmm_jax import balancing, registry
from mtmm_jax.assembly import MakeBalancer, Parts, StepContext, StepHook
from mtmm_jax.balancing.losses_adaptive import blending
from mtmm_jax.batch import Batch, Tokens
from mtmm_jax.model import Model
from mtmm_jax.objectives.imbalance_rules import (
    Array,
    ImbalanceRule,
    PyTree,
    Scene,
    Setting,
    agm,
    modulated,
    ogm_ge,
)
from mtmm_jax.objectives.prototypes import pmr
from mtmm_jax.registry import ConfigError
from mtmm_jax.tasks.metrics import monoids as metrics
from mtmm_jax.tasks.task import FUSED, Labels, Task, modalities_of

IMBALANCE: dict[str, Callable[..., Any]] = {
    "ogm_ge": ogm_ge,
    "agm": agm,
    "pmr": pmr,
    "blending": blending,
}
TERM = "imbalance"
LOSS = "loss"


@dataclasses.dataclass(frozen=True)
class Imbalance:
    """A rule, bound to one task's modalities.

    Attributes:
        modalities: in the order of everything that has a leading M.
        heads: the unimodal tasks, in the same order.
        classes: of the label.
        rule: what acts.
    """

    modalities: tuple[str, ...]
    heads: tuple[str, ...]
    classes: int
    rule: ImbalanceRule

    @property
    def hook(self) -> StepHook:
        """The rule in the training step."""
        return StepHook(
            TERM,
            init=self.rule.init,
            measure=self.measure,
            react=self.react,
            names=self.modalities,
        )

    def measure(
        self,
        context: StepContext,
        memory: PyTree,
        shared: Mapping[str, Tokens] | None,
        predictions: Mapping[str, Any],
        batch: Batch,
        axis_name: str | None,
    ) -> tuple[PyTree, dict[str, tuple[Array, Array]]]:
        """Inside the loss: sums of this device's rows, and the terms that join the losses.

        Args:
            context: of the step; the model's tasks know their labels.
            memory: of the steps before.
            shared: a copy of what crosses the cut, for rules with a term.
            predictions: by task.
            batch: of this device.
            axis_name: the devices' axis, or None.
        """
        present = context.model.present(batch)
        labels = [context.model.tasks[head].labels(batch, present) for head in self.heads]
        logits = jnp.stack([predictions[head].astype(jnp.float32) for head in self.heads])
        features = None
        if self.rule.term:
            features = jnp.stack([shared[m].mean().astype(jnp.float32) for m in self.modalities])
        scene = Scene(
            jax.lax.stop_gradient(logits),
            jnp.stack([label.weight for label in labels]),
            _distribution(labels[0], self.classes),
            features,
        )
        sums, term = self.rule.measure(memory, scene, context.step, axis_name)
        return sums, {} if term is None else {TERM: term}

    def react(
        self, context: StepContext, memory: PyTree, sums: PyTree, key: Array
    ) -> tuple[Callable[[PyTree], PyTree], PyTree, dict[str, Array]]:
        """`(change, memory, metrics)` from the sums of all microbatches and devices: `change` is
        for the gradients of this step, the second one of SAM included."""
        verdict = self.rule.react(memory, sums, context.step)
        values = {f"{TERM}/{name}": value for name, value in verdict.metrics.items()}
        change = functools.partial(modulated, modalities=self.modalities, verdict=verdict, key=key)
        return change, verdict.memory, values


def _distribution(labels: Labels, classes: int) -> Array:
    """`[B, C]`: each row's probability of each class; arbitrary for a row without a label."""
    y = labels.y
    if y is None:
        return jnp.zeros((labels.weight.shape[0], classes))
    if y.ndim == 2:
        return jnp.where(jnp.isfinite(y), y, 0).astype(jnp.float32)
    return jax.nn.one_hot(jnp.clip(y, 0, classes - 1), classes)


def prepare(
    config: str | Mapping[str, Any] | None,
    built: Model,
    steps: int,
    where: str = "optimizer.imbalance",
) -> tuple[Model, Imbalance | None, MakeBalancer]:
    """`(model, rule or None, maker of the balancer)`; without a config all stays as it is.

    Args:
        config: None, or an entry of `IMBALANCE` with its `task`.
        built: the model; with a term it has one more auxiliary row, with blending the blended
            tasks' loss among their metrics.
        steps: of the run.
        where: the place in the config.
    """
    if config is None:
        return built, None, balancing.build
    hyper = registry.entry_of(config, "optimizer.imbalance")
    kind = registry.choose(hyper.get("kind"), IMBALANCE, f"{where}.kind", "kind")
    task, modalities = _task(hyper.pop("task", None), built, where)
    heads = tuple(f"{task.name}_{modality}" for modality in modalities)
    if kind == "blending":
        names = (task.name, *heads)
        return _with_losses(built, names), None, _blender(hyper, built, names, where)
    classes = len(built.spec.targets[task.target].classes)
    widths = {modality: built.encoders[modality].width for modality in modalities}
    if len(set(widths.values())) > 1:
        different = ", ".join(f"{modality} {width}" for modality, width in widths.items())
        raise ConfigError(f"{where}: needs encoders of one width, not {different}")
    width = widths[modalities[0]]
    rule = registry.build(
        IMBALANCE, hyper, Setting(len(modalities), classes, width, steps), where=where
    )
    if rule.term:
        built = dataclasses.replace(built, added=(*built.added, TERM))
    return built, Imbalance(modalities, heads, classes, rule), balancing.build


def extend(section: Any, parts: Parts) -> Parts:
    """The extension `optimizer.imbalance`."""
    model, against, make = prepare(section, parts.model, parts.config["steps"])
    parts = parts.replace(model=model, make_balancer=make)
    return parts if against is None else parts.add_hook(against.hook)


def _task(name: Any, built: Model, where: str) -> tuple[Task, tuple[str, ...]]:
    """The task that the modalities compete for, and they."""
    if name is None:
        raise ConfigError(f"{where}: needs a `task`; choices: {', '.join(built.tasks)}")
    registry.choose(name, built.tasks, f"{where}.task", "task")
    task = built.tasks[name]
    if not task.traits.class_logits:
        fitting = [key for key, value in built.tasks.items() if value.traits.class_logits]
        raise ConfigError(
            f"{where}.task: {name!r} is a {task.kind}, and modalities are compared by the "
            f"probability of a class; choices: {', '.join(fitting) or 'none'}"
        )
    read = task.reads[0]
    if len(task.reads) > 1 or (read != FUSED and "+" not in read):
        raise ConfigError(
            f"{where}.task: {name!r} reads {', '.join(task.reads)} and no fusion, so that no "
            "modality leads another"
        )
    modalities = modalities_of(read, built.encoders)
    if len(modalities) < 2:
        raise ConfigError(f"{where}.task: {name!r} reads {modalities[0]} only; nothing to balance")
    for modality in modalities:
        head = built.tasks.get(f"{name}_{modality}")
        if head is None or head.reads != (modality,) or head.target != task.target:
            raise ConfigError(
                f"{where}.task: {name!r} has no head that reads {modality} alone; set "
                f"tasks.{name}.unimodal to True, or to 'probe' for heads that only score"
            )
    return task, modalities


def _blender(
    hyper: Mapping[str, Any], built: Model, names: tuple[str, ...], where: str
) -> MakeBalancer:
    """Makes the balancer that blends these tasks; checked now, with all the tasks there are."""
    probes = [name for name in names if name in built.probes]
    if probes:
        raise ConfigError(
            f"{where}: blending weighs losses that train the encoders, and {', '.join(probes)} "
            f"only score; set tasks.{names[0]}.unimodal to True"
        )
    order = tuple(built.tasks)
    members = [order.index(name) for name in names]

    def make(config: Any, num_tasks: int) -> balancing.Balancer:
        config = registry.entry_of(config)
        if config != {"kind": "equal"}:
            raise ConfigError(
                f"balancing: {config} together with {where}: blending sets the weights itself; "
                "choices: equal, without hyper-parameters"
            )
        return registry.build(
            {"blending": blending}, hyper, num_tasks, where=where, members=members
        )

    make("equal", len(order))
    return make


def _with_losses(built: Model, names: tuple[str, ...]) -> Model:
    """The model with these tasks' mean losses among its evaluation metrics."""
    auxiliary = {
        name: dataclasses.replace(task, metrics={**task.metrics, LOSS: _mean_loss(task)})
        for name, task in built.tasks.items()
        if name in names
    }
    return dataclasses.replace(built, tasks={**built.tasks, **auxiliary})


def _mean_loss(task: Task) -> metrics.Metric:
    def update(prediction: Any, labels: Labels) -> dict[str, Array]:
        total, count = task.loss(prediction, labels, None)
        return {"sum": total, "count": count}

    def compute(state: Mapping[str, Any]) -> dict[str, float]:
        count = float(state["count"])
        return {LOSS: float(state["sum"]) / count if count > 0 else float("nan")}

    return metrics.Metric(update, metrics.add, compute)
