"""From a config to everything that a run needs, checked before anything compiles."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mtmm_jax import balancing, data, model, registry
from mtmm_jax.batch import Spec
from mtmm_jax.data.pipeline.augment_jit import augmenter
from mtmm_jax.devices import parallel
from mtmm_jax.devices.mesh import Layout
from mtmm_jax.model import Model
from mtmm_jax.objectives import distillation, imbalance, relatedness, semi
from mtmm_jax.objectives.imbalance import Imbalance
from mtmm_jax.optim import optimizers, per_path, per_task, privacy
from mtmm_jax.registry import ConfigError, whole_number
from mtmm_jax.store import config as configs
from mtmm_jax.tasks.hidden import hider, in_turn
from mtmm_jax.training.step import TrainState, initialiser, key_data, make_step
from mtmm_jax.transfer import init_from, lora, quantising

TRAINER_KEYS = ("engine", "head_gradients", "chunk")


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One run's parts.

    Attributes:
        config: plain dicts, as written to the workdir.
        source: the data; None where a finished run is only asked, with the spec that it kept.
        model, balancer, optimizer, rates: what the step is made of.
        trainer: the options of `make_step`.
        devices: a number of local devices, or a mesh on which every parameter has its place.
        imbalance: what helps slow modalities, if anything does.
    """

    config: dict[str, Any]
    source: Any
    model: Model
    balancer: Any
    optimizer: optax.GradientTransformation
    rates: optax.Schedule
    trainer: dict[str, Any]
    devices: parallel.Devices
    imbalance: Imbalance | None = None

    def init(self, seed: int | None = None) -> TrainState:
        """On one device, or as it lies on the mesh; with what `config.init_from` gives.

        Args:
            seed: instead of the config's; the compiled program is the same.
        """
        return self.begun(seed)[0]

    def begun(self, seed: int | None = None) -> tuple[TrainState, init_from.Report | None]:
        """The state before the first step, and what of it came from elsewhere."""
        if (self.config.get("relatedness") or {"found": True}).get("found") is None:
            raise ConfigError(
                "relatedness: was not measured; mtmm_jax.train does so before the first step "
                "(training.relatedness.begin)"
            )
        mesh = self.devices if isinstance(self.devices, Layout) else None
        # On a mesh no device ever holds the whole.
        laid_out = {} if mesh is None else {"out_shardings": mesh.of(self.shapes)}
        drawn = key_data(self.config["seed"] if seed is None else seed)
        state = parallel.jit_once(self._initialise, **laid_out)(drawn)
        return init_from.load(self, state, assemble)

    @functools.cached_property
    def _initialise(self) -> Any:
        """Traced once, for the shapes and for the numbers."""
        return jax.jit(initialiser(self.model, self.balancer, self.optimizer, self.imbalance))

    @functools.cached_property
    def shapes(self) -> TrainState:
        """The state's tree with shapes and dtypes, and no numbers."""
        return jax.eval_shape(self._initialise, key_data(self.config["seed"]))

    @property
    def parameters(self) -> int:
        """How many numbers the model has, trained or frozen."""
        return sum(math.prod(x.shape) for x in jax.tree.leaves(self.shapes.params))

    @functools.cached_property
    def learning_rates(self) -> np.ndarray:
        """`[steps]`, known beforehand: asked of the device, a log would wait for the step that
        the device is doing."""
        steps = np.arange(self.config["steps"])
        return jax.device_get(jax.jit(jax.vmap(lambda step: jnp.asarray(self.rates(step))))(steps))

    def step(self) -> Any:
        """The pure step, not yet wrapped for devices."""
        return make_step(
            self.model,
            self.balancer,
            self.optimizer,
            seed=self.config["seed"],
            imbalance=self.imbalance,
            **self.trainer,
        )

    def changed(self, **sections: Any) -> Experiment:
        """The experiment of this config with other sections, on the same data."""
        return assemble({**self.config, **sections}, source=self.source)


def assemble(config: Any, spec: Spec | None = None, source: Any = None) -> Experiment:
    """Builds and checks every part; raises a `ConfigError` that names value, place and choices.

    With a `spec` the data are left alone: all that a finished run needs to predict. With a `source`
    they are taken from it.
    """
    configs.check(config)
    plain = configs.as_dict(config)
    related = relatedness.read(plain.get("relatedness"))
    devices = parallel.place(plain["devices"], plain["batch_size"])
    parallel.check_rows(plain["evaluation"]["batch_size"], devices, "evaluation.batch_size")
    if source is None and spec is None:
        source = data.build(plain["data"])
    built = model.build(plain["model"], plain["tasks"], spec or source.spec)
    options = dict(plain["optimizer"])
    built, against, make = imbalance.prepare(options.pop("imbalance", None), built, plain["steps"])
    paces, private = options.pop("tasks", None), options.pop("private", None)
    weighing = plain["balancing"]
    if related is not None:
        relatedness.check(related, built, plain)
        weighing, built = relatedness.applied(related, built, plain)
    if plain.get("teachers") is not None:
        section = plain["teachers"]
        built, source, plain["teachers"] = distillation.applied(section, built, source, assemble)
    built, labeller = semi.prepare(plain.get("semi"), built, plain)
    balancer, trainer = _balancing(weighing, built, make, paces)
    if source is not None:
        _check_mixing(source, built, balancer)
        in_step = data.in_step(plain["data"])
        steps = [augmenter(in_step, source.spec, "data.in_step")] if in_step else []
        steps += [hider(built.tasks, source.spec.modalities)]
        if (augment := in_turn(steps)) is not None:
            trainer["augment"] = augment
    trainer["accumulate"] = _microbatches(options.pop("accumulate", 1), plain, balancer, devices)
    if trainer["accumulate"] > 1 and trainer.get("engine") == "gramian":
        raise ConfigError(
            "optimizer.accumulate: engine 'gramian' needs all samples at once; "
            "balancing.engine choices: auto, representation, full"
        )
    heads, trainer["task_rates"] = None, bool(paces)
    if paces:
        heads = functools.partial(
            per_task.pace_heads,
            balancer=balancer,
            tasks=tuple(built.tasks),
            head_gradients=trainer.get("head_gradients"),
        )
    built, freeze = _rewritten(built, plain)
    freeze = [*per_path.regexes(options.get("freeze"), "optimizer.freeze"), *freeze]
    if freeze:
        options["freeze"] = freeze
        built = dataclasses.replace(built, rewrites=(per_path.held(freeze), *built.rewrites))
    if labeller is not None:
        trainer["teach"] = labeller(built)
    optimizer, rates = optimizers.build(options, plain["steps"], heads)
    if any(key in options for key in per_path.KEYS):  # rules by path are read where paths are
        jax.eval_shape(optimizer.init, built.shapes["params"])
    if private is not None:
        if plain["optimizer"].get("imbalance") is not None:
            raise ConfigError(
                "optimizer.imbalance: not with optimizer.private: it follows the samples' scores, "
                "which no noise covers"
            )
        trainer["private"] = privacy.read(private)
        privacy.check(built, built.shapes.get("batch_stats", {}), plain)
    best = plain["checkpoint"]["best"]
    registry.choose(best, ("mean", *built.tasks), "checkpoint.best", "task")
    if isinstance(devices, Layout):
        devices = devices.resolve(built.shapes["params"])
    return Experiment(plain, source, built, balancer, optimizer, rates, trainer, devices, against)


def _rewritten(built: Model, plain: dict[str, Any]) -> tuple[Model, list[str]]:
    """The model with `config.lora` and `config.quantise`; what these and `init_from` freeze."""
    origin = init_from.read(plain.get("init_from"))
    thin, small = lora.read(plain.get("lora")), quantising.read(plain.get("quantise"))
    rewrites = [lora.rewrite(thin)] if thin is not None else []
    rewrites += [quantising.rewrite(small)] if small is not None else []
    if rewrites:
        built = dataclasses.replace(built, rewrites=(*built.rewrites, *rewrites))
        jax.eval_shape(built.read, built.shapes)  # regexes are read where paths are
    freeze = [*(origin.freeze if origin else ()), *(thin.frozen if thin else ())]
    return built, freeze


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


def _microbatches(
    count: Any, config: dict[str, Any], balancer: Any, devices: parallel.Devices
) -> int:
    """`optimizer.accumulate`, checked together with the batch size."""
    whole_number(count, "optimizer.accumulate")
    parts = {
        "devices": parallel.row_parts(devices),
        "samples that this balancing method compares": 2 if balancer.rule.second_sample else 1,
        "microbatches (optimizer.accumulate)": count,
    }
    least = math.prod(parts.values())
    if config["batch_size"] % least:
        said = " x ".join(f"{n} {what}" for what, n in parts.items() if n > 1)
        raise ConfigError(
            f"batch_size: {config['batch_size']} does not divide into {said}; "
            f"choose a multiple of {least}"
        )
    return count


def _balancing(
    config: Any,
    built: Model,
    make: imbalance.MakeBalancer = balancing.build,
    paces: Any = None,
) -> tuple[Any, dict[str, Any]]:
    config = registry.entry_of(config)
    trainer = {key: config.pop(key) for key in TRAINER_KEYS if key in config}
    auxiliaries = config.pop("auxiliaries", "beside")
    registry.choose(auxiliaries, ("beside", "balanced"), "balancing.auxiliaries", "way")
    names = built.loss_names if auxiliaries == "balanced" else tuple(built.tasks)
    balancer = per_task.pace(make(config, len(names)), paces, names)
    balancer = balancing.with_auxiliary_losses(balancer, len(built.loss_names) - len(names))
    if balancer.rule.observes == "losses" and make is balancing.build:
        raise ConfigError(
            "balancing: this form waits for later losses, which training does not hand back; "
            "famo: after='next', dwa: epoch of 1 or more steps"
        )
    if built.probes and balancer.rule.needs != "losses":
        raise ConfigError(
            f"balancing: {', '.join(built.probes)} only score (unimodal: 'probe'), so that their "
            "gradient of shared parameters is zero and this method would weigh against nothing; "
            "set unimodal to True, or choose a method that needs losses only"
        )
    cuts = {task.reads for task in built.tasks.values()}
    if (
        balancer.rule.needs != "losses"
        and trainer.get("engine", "auto") == "auto"
        and len(cuts) > 1
    ):
        # Tasks that read different tensors do not meet at the cut: their gradients there would be
        # orthogonal by construction, and every conflict inside the encoders invisible.
        trainer["engine"] = "full"
    return balancer, trainer


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
