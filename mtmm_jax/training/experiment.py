"""From a config to everything that a run needs, checked before anything compiles."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from mtmm_jax import data, registry
from mtmm_jax.assembly import Parts, StepContext, StepHook, extended
from mtmm_jax.balancing.trainer import TRAINER
from mtmm_jax.batch import Spec
from mtmm_jax.devices import machine, parallel
from mtmm_jax.devices.mesh import Layout
from mtmm_jax.encoders import backbones
from mtmm_jax.model import Model
from mtmm_jax.model import build as build_model
from mtmm_jax.registry import ConfigError
from mtmm_jax.store import config as configs
from mtmm_jax.store.workdir import Workdir
from mtmm_jax.training import linear_models, stopping
from mtmm_jax.training.extensions import EXTENSIONS, optional_sections
from mtmm_jax.training.step import TrainState, initialiser, key_data, make_step, prepared
from mtmm_jax.transfer import init_from


class Started(NamedTuple):
    """A run before its first step.

    Attributes:
        state: drawn, loaded and fitted.
        fitted: the statistics of fixed encoders and the linear models; None without any.
        loaded: what `init_from` gave; None without it.
    """

    state: TrainState
    fitted: Any
    loaded: init_from.Report | None


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One run's parts.

    Attributes:
        config: plain dicts, as written to the workdir.
        source: the data; None where a finished run only predicts, with the spec that it kept.
        model, balancer, optimizer, rates: what the step is made of.
        trainer: the options of `make_step`.
        devices: a number of local devices, or a mesh on which every parameter has its place.
        hooks: what extensions add to the step.
    """

    config: dict[str, Any]
    source: Any
    model: Model
    balancer: Any
    optimizer: optax.GradientTransformation
    rates: optax.Schedule
    trainer: dict[str, Any]
    devices: parallel.Devices
    hooks: tuple[StepHook, ...] = ()

    def init(self, seed: int | None = None) -> TrainState:
        """On one device, or as it lies on the mesh; with what `config.init_from` gives.

        Args:
            seed: instead of the config's; the compiled program is the same.
        """
        return self.start(seed).state

    def start(self, seed: int | None = None) -> Started:
        """The state before the first step, and what of it came from elsewhere."""
        state, loaded = init_from.load(self, self.drawn(seed), assemble)
        return Started(*linear_models.begin(self, state), loaded)

    def drawn(self, seed: int | None = None) -> TrainState:
        """The state before the first step with all parameters drawn at random."""
        if (self.config.get("relatedness") or {"found": True}).get("found") is None:
            raise ConfigError(
                "relatedness: was not measured; mtmm_jax.train does so before the first step "
                "(training.relatedness.begin)"
            )
        mesh = self.devices if isinstance(self.devices, Layout) else None
        # On a mesh no device ever holds the whole.
        laid_out = {} if mesh is None else {"out_shardings": mesh.of(self.shapes)}
        drawn = key_data(self.config["seed"] if seed is None else seed)
        return parallel.jit_once(self._initialise, **laid_out)(drawn)

    @functools.cached_property
    def _initialise(self) -> Any:
        """Traced once, for the shapes and for the numbers."""
        return jax.jit(initialiser(self.model, self.balancer, self.optimizer, self.hooks))

    @functools.cached_property
    def shapes(self) -> TrainState:
        """The state's tree with shapes and dtypes, and no numbers."""
        with _traced("the model"):
            return jax.eval_shape(self._initialise, key_data(self.config["seed"]))

    def check_shapes(self) -> None:
        """Traces the initialisation and a step: what cannot work fails here, before a workdir is
        claimed and anything is compiled."""
        rows, example = self.config["batch_size"], self.source.spec.example(EXAMPLE_ROWS)
        batch = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((rows, *np.shape(x)[1:]), x.dtype), example
        )
        shapes = self.shapes
        with _traced("a training step"):
            jax.eval_shape(self.step(), shapes, batch)

    def check_memory(self) -> None:
        """Refuses a state, or one tensor of the forward pass, that no device could hold.

        Tensors are those of the traced initialisation, whose batch of two is scaled to the
        config's; what XLA adds or saves is not known before it compiles.
        """
        several = isinstance(self.devices, int)
        devices = self.devices if several else self.devices.mesh.size
        device = jax.local_devices()[0]
        there = machine.device_bytes(device) // (devices if device.platform == "cpu" else 1)
        state = sum(map(machine.bytes_of, jax.tree.leaves(self.shapes)))
        fix = "choose a smaller model (model.width, presets, fusion)"
        split = 1 if several else devices
        machine.refuse_larger(
            (state + sum(map(machine.bytes_of, jax.tree.leaves(self.shapes.params)))) / split,
            there,
            "model",
            f"the training state and a gradient of {self.parameters:,} parameters",
            fix,
        )
        traced = self._initialise.trace(key_data(self.config["seed"]))
        rows = self.config["batch_size"] / devices / EXAMPLE_ROWS
        largest = max(map(machine.bytes_of, _batched(traced.jaxpr.jaxpr)), default=0)
        machine.refuse_larger(
            largest * rows / self.trainer.get("accumulate", 1),
            there,
            "batch_size",
            f"one tensor of the forward pass over {self.config['batch_size']} rows",
            "choose a smaller batch, shorter inputs, or optimizer.accumulate",
        )

    @property
    def parameters(self) -> int:
        """The number of parameters, trained or frozen."""
        return sum(math.prod(x.shape) for x in jax.tree.leaves(self.shapes.params))

    @functools.cached_property
    def learning_rates(self) -> np.ndarray:
        """`[steps]`, known beforehand: reading it from the device would make a log wait for the
        step in progress."""
        steps = np.arange(self.config["steps"])
        return jax.device_get(jax.jit(jax.vmap(lambda step: jnp.asarray(self.rates(step))))(steps))

    def step(self) -> Any:
        """The pure step, not yet wrapped for devices."""
        return make_step(
            self.model,
            self.balancer,
            self.optimizer,
            seed=self.config["seed"],
            hooks=self.hooks,
            **self.trainer,
        )

    def prepared(self, state: TrainState, batch: Any) -> Any:
        """A batch as the losses of the next step see it: augmented, masked, with added targets."""
        root = jax.random.key(self.config["seed"])
        context = StepContext(self.model, root, state, batch)
        return prepared(self.hooks, context, batch)

    def changed(self, **sections: Any) -> Experiment:
        """The experiment of this config with other sections, on the same data."""
        return assemble({**self.config, **sections}, source=self.source)


@contextlib.contextmanager
def _traced(what: str) -> Iterator[None]:
    """Whatever stops the trace as one line; the cause, with its traceback, is kept in the error."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"config: {what} cannot be built with these values: {type(error).__name__}: {reason}"
        ) from error


EXAMPLE_ROWS = 2  # of the batch by which a model is initialised


def _batched(jaxpr: Any) -> Iterator[Any]:
    """The tensors of a program whose first axis is the example's rows, in every sub-program."""
    for equation in jaxpr.eqns:
        for variable in equation.outvars:
            if getattr(variable.aval, "shape", ())[:1] == (EXAMPLE_ROWS,):
                yield variable.aval
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from _batched(inner)


def load(name_or_path: str) -> ConfigDict:
    """The config of a file or of a name, with None for the optional sections that it leaves out."""
    return configs.load(name_or_path, optional_sections())


def check_config(config: Any) -> None:
    """Raises a `ConfigError` for unknown, missing or impossible top-level values."""
    configs.check(config, optional_sections())


def build_source(config: Any, kept: Workdir | None = None) -> Any:
    """The data of a config, its texts in the tokens of the encoders that read them.

    Args:
        config: of a run, as plain dicts.
        kept: a run, whose tokenizers are taken instead of those in folders of weights.
    """
    if kept is None:
        return data.build(config["data"], tokenizers=backbones.tokenizers(_encoders(config)))
    return data.build(config["data"], tokenizers=kept.tokenizers())


def _encoders(config: Any) -> Any:
    model = config["model"]
    return model.get("encoders") if isinstance(model, Mapping) else None


def assemble(config: Any, spec: Spec | None = None, source: Any = None) -> Experiment:
    """Builds and checks every part; raises a `ConfigError` that names value, place and choices.

    With a `spec` the data are left alone: all that a finished run needs to predict. With a `source`
    they are taken from it.
    """
    check_config(config)
    plain = configs.as_dict(config)
    for key in ("data", "optimizer"):  # everything that reads them later finds a section
        plain[key] = registry.entry_of(plain[key], key)
    devices = parallel.place(plain["devices"], plain["batch_size"])
    parallel.check_rows(plain["evaluation"]["batch_size"], devices, "evaluation.batch_size")
    if "encoders" in plain["model"]:
        if spec is not None:
            backbones.check_kept(plain["model"]["encoders"])
        found = backbones.with_sizes(plain["model"]["encoders"])
        plain["model"] = {**plain["model"], "encoders": found}
    if source is None and spec is None:
        source = build_source(plain)
    model = build_model(plain["model"], plain["tasks"], spec or source.spec)
    parts = extended(Parts(plain, source, model, devices, assemble, plain["balancing"]), EXTENSIONS)
    for key in TRAINER.keys() & parts.trainer.keys():
        registry.check(parts.trainer[key], TRAINER[key], f"balancing.{key}")
    if source is not None:
        _check_mixing(parts.source, parts.model, parts.balancer)
    _check_batch_size(parts)
    best = plain["checkpoint"]["best"]
    registry.choose(best, ("mean", "skill", *parts.model.tasks), "checkpoint.best", "task")
    stopping.read(plain.get("stopping"))
    if isinstance(devices, Layout):
        devices = devices.resolve(parts.model.shapes["params"])
    return Experiment(
        parts.config,
        parts.source,
        parts.model,
        parts.balancer,
        parts.optimizer,
        parts.rates,
        dict(parts.trainer),
        devices,
        parts.hooks,
    )


def _check_mixing(source: Any, built: Model, balancer: Any) -> None:
    """Gradients of tasks that never meet in a step cannot be balanced against each other."""
    if source.mixing.per != "step" or balancer.rule.needs == "losses":
        return
    together = [
        sum(t.target in spec.targets for t in built.tasks.values()) for spec in source.carries
    ]
    if max(together, default=0) < 2:
        raise ConfigError(
            "data.mixing: a step holds one source and so one task, and this balancing method "
            "compares tasks within a step; choose per='batch', or a method that needs losses only"
        )


def _check_batch_size(parts: Parts) -> None:
    """The batch divides over devices, microbatches and what the balancing method compares."""
    second = parts.balancer.rule.second_sample
    divisors = {
        "devices": parallel.row_parts(parts.devices),
        "samples that this balancing method compares": 2 if second else 1,
        "microbatches (optimizer.accumulate)": parts.trainer.get("accumulate", 1),
    }
    least = math.prod(divisors.values())
    if parts.config["batch_size"] % least:
        product = " x ".join(f"{n} {what}" for what, n in divisors.items() if n > 1)
        raise ConfigError(
            f"batch_size: {parts.config['batch_size']} does not divide into {product}; "
            f"choose a multiple of {least}"
        )


def check_batch(experiment: Experiment, batch: Any) -> None:
    """The first batch against the spec, and every task against the labels that it has."""
    experiment.source.spec.check(batch)
    if experiment.source.mixing.per == "step":
        return  # it has the labels of one source only
    for name, task in experiment.model.tasks.items():
        if task.target is not None and task.target not in batch["targets"]:
            raise ConfigError(
                f"tasks.{name}.target: the batches have no {task.target!r}; they have: "
                f"{', '.join(batch['targets'])}"
            )
