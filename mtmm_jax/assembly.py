"""The parts of an experiment, which extensions change, and the hooks that they add to its step.

An extension is `extend(section, parts) -> parts`: it reads its section of the config and returns
the parts with a model, source, balancing, optimiser or step of its own making. A `StepHook` is its
place in the training step; all of a hook's functions are pure, and each may be left out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import optax

from mtmm_jax import balancing
from mtmm_jax.batch import Batch
from mtmm_jax.keys import example_keys, fold_in_name
from mtmm_jax.model import Model, Rewrite
from mtmm_jax.registry import ConfigError

MakeBalancer = Callable[[Any, int], balancing.Balancer]


class StepContext(NamedTuple):
    """Values of the current step that hooks may read.

    Attributes:
        model: the assembled model, with everything that was added to it.
        root: the run's key.
        state: the training state before the step.
        batch: as it came from the source, before any hook changed it.
    """

    model: Model
    root: jax.Array
    state: Any
    batch: Batch

    @property
    def step(self) -> jax.Array:
        """The number of steps before this one."""
        return self.state.step

    @property
    def variables(self) -> dict[str, Any]:
        """Those to evaluate: averaged parameters, if the optimiser keeps some."""
        return self.state.variables

    def example_keys(self, purpose: str) -> jax.Array:
        """`[B]` keys by example, step and purpose."""
        return example_keys(fold_in_name(self.root, purpose), self.step, self.batch["id"])


@dataclasses.dataclass(frozen=True)
class StepHook:
    """An extension's part of the training step.

    Attributes:
        name: the key of its memory, its sums and its metrics.
        prepare: `(context, batch) -> batch`: the batch that the losses see.
        init: `() -> memory`, a pytree that is kept from step to step.
        measure: `(context, memory, shared, predictions, batch, axis_name) -> (sums, terms)`, inside
            the losses: sums of this device's rows, and the auxiliary losses `model.added`.
        react: `(context, memory, sums, key) -> (change, memory, metrics)`: `change` is applied to
            the gradient, the second one of SAM included; sums are those of all devices.
        gradient: `(losses, balancer, axis_name) -> fn`, in the place of `balancing.value_and_grad`.
        extra: `(balancing state) -> keyword arguments` of the optimiser's update.
        names: of the entries of its metrics that are vectors.
    """

    name: str
    prepare: Callable[[StepContext, Batch], Batch] | None = None
    init: Callable[[], Any] | None = None
    measure: Callable[..., tuple[Any, Mapping[str, Any]]] | None = None
    react: Callable[..., tuple[Callable[[Any], Any], Any, Mapping[str, jax.Array]]] | None = None
    gradient: Callable[..., Callable[..., balancing.Balanced]] | None = None
    extra: Callable[[Any], Mapping[str, Any]] | None = None
    names: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Parts:
    """The parts of an experiment during assembly.

    Attributes:
        config: all of it, as plain dicts; an extension may write what it found into its section.
        source: of the batches; None where a finished run is only opened, with the spec it kept.
        model: with the modules of the config, and whatever extensions add.
        devices: a number of local devices, or a mesh.
        assemble: opens a finished run: `(config, spec=None, source=None) -> Experiment`.
        balancing: the config of the balancer, without the trainer's options once it is built.
        make_balancer: `(config, number of losses) -> Balancer`.
        balancer: None before it is built.
        trainer: the options of `make_step`.
        hooks: in the order in which they act.
        freeze: regexes over the paths that do not learn.
        rates_by_path: pairs of a regex and a factor of the learning rate, after the config's own.
        around_heads: `(parts) -> (rule -> rule)`: what stands around the optimiser's rule.
        optimizer, rates: None before they are built.
    """

    config: dict[str, Any]
    source: Any
    model: Model
    devices: Any
    assemble: Callable[..., Any]
    balancing: Any
    make_balancer: MakeBalancer = balancing.build
    balancer: Any = None
    trainer: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    hooks: tuple[StepHook, ...] = ()
    freeze: tuple[str, ...] = ()
    rates_by_path: tuple[tuple[str, float], ...] = ()
    around_heads: Callable[[Parts], Any] | None = None
    optimizer: optax.GradientTransformation | None = None
    rates: optax.Schedule | None = None

    def replace(self, **changes: Any) -> Parts:
        return dataclasses.replace(self, **changes)

    def add_hook(self, hook: StepHook) -> Parts:
        """With a hook after those that there are."""
        return self.replace(hooks=(*self.hooks, hook))

    def add_rewrite(self, rewrite: Rewrite) -> Parts:
        """With a rewrite of the parameters; its regexes are read at once, where paths are."""
        model = dataclasses.replace(self.model, rewrites=(*self.model.rewrites, rewrite))
        jax.eval_shape(model.read, model.shapes)
        return self.replace(model=model)


@dataclasses.dataclass(frozen=True)
class Extension:
    """A row of `training.extensions.EXTENSIONS`, named by its section's place in the config.

    Attributes:
        extend: `(section, parts) -> parts`, called where the config has the section.
        order: rows are applied from the smallest to the largest: what changes the model below 50,
            where the balancer is built, what rewrites parameters below 80, where the optimiser is.
        excludes: another section -> why both at once make no sense.
    """

    extend: Callable[[Any, Parts], Parts]
    order: int
    excludes: Mapping[str, str] = dataclasses.field(default_factory=dict)


def section_at(config: Mapping[str, Any], place: str) -> Any:
    """The section at a place such as `optimizer.private`; None where there is none."""
    value: Any = config
    for key in place.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def extended(parts: Parts, table: Mapping[str, Extension]) -> Parts:
    """The parts after every extension of the table that the config asks for, in order."""
    for place, row in table.items():
        for other, why in row.excludes.items():
            if None not in (section_at(parts.config, place), section_at(parts.config, other)):
                raise ConfigError(f"{place}: not with {other}: {why}")
    for place, row in sorted(table.items(), key=lambda item: item[1].order):
        section = section_at(parts.config, place)
        if section is not None:
            parts = row.extend(section, parts)
    return parts
