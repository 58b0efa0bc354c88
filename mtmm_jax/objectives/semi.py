"""Learning from rows without labels: `config.semi`, in addition to the tasks' losses.

    config.semi = {"kind": "pseudo", "thresholds": 0.95, "alpha": 1.0}

`data.hide` takes labels away to try it, `data.semi` sets how many rows of a batch have one. Where
every row has its label, or none is to be had, the terms count nothing and nothing happens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from mtmm_jax import registry
from mtmm_jax.assembly import Parts, StepContext, StepHook
from mtmm_jax.batch import Batch
from mtmm_jax.model import Model
from mtmm_jax.ranges import Count, Natural, NonNegative, Share
from mtmm_jax.registry import ConfigError, choose
from mtmm_jax.tasks.task import Task
from mtmm_jax.tasks.terms.imitation import (
    MEASURES,
    agreement_of_heads,
    imitation,
    share_of,
)
from mtmm_jax.tasks.terms.term import Regulariser
from mtmm_jax.tasks.traits.distilled import Distilled

# `(model, variables to evaluate, batch, step) -> {target: {"y", "present"}}`.
Labeller = Callable[[Model, Any, Batch, jax.Array], dict[str, Any]]
Prepared = tuple[Model, Labeller | None]
WHERE = "semi"


def pseudo(
    built: Model,
    plain: Mapping[str, Any],
    *,
    where: str,
    thresholds: Share | Mapping[str, Share] = 0.95,
    alpha: NonNegative = 1.0,
    warmup: Natural = 0,
    tasks: Sequence[str] | None = None,
) -> Prepared:
    """alpha 1/K sum_k 1/U sum_u [max_c q_uc >= t] H(argmax q_u, p_u), over the U unlabelled rows.

    q is what the model says of the batch as it was before `data.in_step`, by its average if the
    optimiser keeps one (`ema`), and p what it says after: with strong augmentation in the step this
    is FixMatch (Sohn et al. 2020), without it pseudo-labelling (Lee 2013). Of labels of which
    several hold, each is taken or left by itself, where it or its absence is as sure.

    `semi/<task>/used` among the losses is the share of unlabelled rows that got a label; how many
    of those are right cannot be known: nobody labelled them. Costs one more forward pass. Use it
    where confidence means something: too early it teaches the model its own mistakes.

    Args:
        built, plain, where: given by `prepare`.
        thresholds: t, for all tasks or for each by name.
        alpha: weight of the term.
        warmup: steps without.
        tasks: those that get labels; None: all that say a class or labels.
    """
    chosen = _chosen(built, tasks, where, confident=True)
    limits = _thresholds(thresholds, tuple(chosen), where)

    def teach(model: Model, variables: Any, batch: Batch, step: jax.Array) -> dict[str, Any]:
        predictions, _ = model(variables, batch["inputs"])
        targets = {}
        for name, form in chosen.items():
            task = built.tasks[name]
            q = form.soft_label(predictions[name], 1.0)
            y, sure = form.confident(q, limits[name])
            rows = _rows(built, task, batch) & ~_labelled(task, batch)
            weight = (sure & (step >= warmup)).astype(jnp.float32)
            targets[f"{WHERE}/{name}"] = {"y": y, "present": rows, "weight": weight}
        return targets

    terms: dict[str, tuple[float, Regulariser]] = {}
    for name, form in chosen.items():
        target = f"{WHERE}/{name}"
        terms[target] = (alpha / len(chosen), imitation(name, form, target))
        if registry.entry_of(plain["balancing"]).get("auxiliaries") != "balanced":
            terms[f"{target}/used"] = (1.0, share_of(target))  # a metric: it has no gradient
    return _with(built, terms), teach


def mean_teacher(
    built: Model,
    plain: Mapping[str, Any],
    *,
    where: str,
    alpha: NonNegative = 1.0,
    ramp: Count | None = None,
    measure: str = "squared",
    tasks: Sequence[str] | None = None,
) -> Prepared:
    """alpha r(step) 1/K sum_k 1/N sum_n |softmax(z) - softmax(z_average)|^2, over all rows.

    r = exp(-5 (1 - t)^2), t from 0 to 1 over `ramp` steps. The average of the parameters
    (`optimizer.ema`) sees the batch as it was before `data.in_step`, the model as it is after:
    what is said of a row is not to depend on noise (Tarvainen, Valpola 2017). Numbers are compared
    in standard deviations, halved. Costs one more forward pass.

    Args:
        built, plain, where: given by `prepare`.
        alpha: weight of the term when the ramp has ended.
        ramp: steps; None: a quarter of the run.
        measure: "squared", or "kl".
        tasks: those that are kept consistent; None: all that can be compared.
    """
    choose(measure, MEASURES, f"{where}.measure", "measure")
    length = max(plain["steps"] // 4, 1) if ramp is None else ramp
    if plain["optimizer"].get("ema") is None:
        raise ConfigError(
            f"{where}: mean_teacher needs an average of the parameters: set optimizer.ema, such as "
            "0.99"
        )
    chosen = _chosen(built, tasks, where)

    def teach(model: Model, variables: Any, batch: Batch, step: jax.Array) -> dict[str, Any]:
        predictions, _ = model(variables, batch["inputs"])
        targets = {}
        for name, form in chosen.items():
            rows = _rows(built, built.tasks[name], batch)
            weight = jnp.broadcast_to(ramped(step, length), rows.shape)
            y = form.soft_label(predictions[name], 1.0)
            targets[f"{WHERE}/{name}"] = {"y": y, "present": rows, "weight": weight}
        return targets

    terms = {
        f"{WHERE}/{name}": (
            alpha / len(chosen),
            imitation(name, form, f"{WHERE}/{name}", measure=measure),
        )
        for name, form in chosen.items()
    }
    return _with(built, terms), teach


def consistency(
    built: Model,
    plain: Mapping[str, Any],
    *,
    where: str,
    alpha: NonNegative = 1.0,
    tasks: Sequence[str] | None = None,
) -> Prepared:
    """alpha 1/M sum_m 1/N sum_n KL(stop(p_fused) || p_m): each modality alone says what all say.

    Over rows with and without labels alike, for tasks with heads on each modality alone
    (`unimodal: True`, as `<task>_<modality>`). The fused prediction is not moved by it. Costs next
    to nothing. Use it where some modalities are read well long before others.

    Args:
        built, plain, where: given by `prepare`.
        alpha: weight of the term.
        tasks: whose heads agree; None: of all that have such heads.
    """
    del plain
    for name in tasks or ():
        choose(name, built.tasks, f"{where}.tasks", "task")
    pairs = [(name, head) for name in tasks or built.tasks for head in _heads(built, name)]
    bare = [name for name in tasks or () if not _heads(built, name)]
    if bare or not pairs:
        what = f"task {bare[0]!r} has" if bare else "no task has"
        raise ConfigError(
            f"{where}: {what} heads on each modality alone that train it; set unimodal to True"
        )
    terms = {}
    for name, head in pairs:
        form = built.tasks[name].distilled
        if form is None:
            kind = built.tasks[name].kind
            raise ConfigError(f"{where}.tasks: {name!r} is a {kind}, which cannot be compared")
        term = agreement_of_heads(name, form, head)
        terms[f"{WHERE}/{head}"] = (alpha / len(pairs), term)
    return _with(built, terms), None


SEMI: dict[str, Callable[..., Prepared]] = {
    "pseudo": pseudo,
    "mean_teacher": mean_teacher,
    "consistency": consistency,
}


def prepare(config: Any, built: Model, plain: Mapping[str, Any], where: str = WHERE) -> Prepared:
    """`(model with the terms, what gives their targets in the step, or None)`.

    Args:
        config: an entry of `SEMI`.
        built: the model.
        plain: the whole config.
        where: the place in the config.
    """
    return registry.build(SEMI, config, built, plain, where=where)


def extend(section: Any, parts: Parts) -> Parts:
    """The extension `semi`: the terms, and a hook that labels each batch as it came."""
    model, labeller = prepare(section, parts.model, parts.config)
    parts = parts.replace(model=model)
    if labeller is None:
        return parts

    def prepare_batch(context: StepContext, batch: Batch) -> Batch:
        found = labeller(context.model, context.variables, context.batch, context.step)
        targets = jax.lax.stop_gradient(found)
        return {**batch, "targets": {**batch["targets"], **targets}}

    return parts.add_hook(StepHook(WHERE, prepare=prepare_batch))


def ramped(step: jax.Array, length: int) -> jax.Array:
    """exp(-5 (1 - t)^2), t = min(step / length, 1)."""
    t = jnp.minimum(step.astype(jnp.float32) / length, 1.0)
    return jnp.exp(-5.0 * jnp.square(1.0 - t))


def _with(built: Model, terms: Mapping[str, tuple[float, Regulariser]]) -> Model:
    return dataclasses.replace(built, regularisers={**built.regularisers, **terms})


def _chosen(
    built: Model, tasks: Sequence[str] | None, where: str, confident: bool = False
) -> dict[str, Distilled]:
    """Task -> how it is imitated, of the tasks that are named or of all that can be.

    With `confident` only those that can be sure of a label.
    """
    fitting = {
        name: task.distilled
        for name, task in built.tasks.items()
        if task.distilled is not None and (task.distilled.confident or not confident)
    }
    for name in tasks or ():
        choose(name, built.tasks, f"{where}.tasks", "task")
        if name not in fitting:
            raise ConfigError(
                f"{where}.tasks: {name!r} is a {built.tasks[name].kind}, which has nothing to be "
                f"sure of or to compare; choices: {', '.join(fitting) or 'none'}"
            )
    if not fitting:
        raise ConfigError(f"{where}: no task of {', '.join(built.tasks)} can learn without labels")
    wanted = fitting if tasks is None else tasks
    return {name: fitting[name] for name in wanted if tasks or name not in built.probes}


def _heads(built: Model, name: str) -> list[str]:
    """The tasks that learn the same label from one modality alone."""
    task = built.tasks[name]
    found = [f"{name}_{modality}" for modality in built.encoders]
    return [
        head
        for head in found
        if head in built.tasks
        and head not in built.probes
        and built.tasks[head].target == task.target
        and built.tasks[head].reads != task.reads
    ]


def _rows(built: Model, task: Task, batch: Batch) -> jax.Array:
    """`[B]`: everything that the task reads is there, and the row counts."""
    present = built.present(batch)
    here = jnp.stack([present[read] for read in task.reads]).all(0)
    return here & (jnp.asarray(batch.get("weight", 1.0)) > 0)


def _labelled(task: Task, batch: Batch) -> jax.Array:
    entry = batch["targets"].get(task.target)
    return jnp.asarray(False) if entry is None else jnp.asarray(entry["present"])


def _thresholds(given: Any, tasks: Sequence[str], where: str) -> dict[str, float]:
    named = given if isinstance(given, Mapping) else dict.fromkeys(tasks, given)
    for name in named:
        choose(name, tasks, f"{where}.thresholds", "task")
    return {name: float(named.get(name, 0.95)) for name in tasks}
