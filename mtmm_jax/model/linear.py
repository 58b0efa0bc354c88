"""Linear models of fixed features next to the network, and their mixture, task by task."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mtmm_jax import registry
from mtmm_jax.batch import Spec, choose_all
from mtmm_jax.encoders import ENCODERS
from mtmm_jax.encoders.backbones.pretrained import sections
from mtmm_jax.encoders.encoder import Encoder
from mtmm_jax.encoders.fixed import FixedEncoder, FrozenVectors
from mtmm_jax.modalities import kind_of
from mtmm_jax.model.forward import ForwardPass
from mtmm_jax.registry import ConfigError
from mtmm_jax.tasks.task import Task, modalities_of
from mtmm_jax.tasks.traits.linear import Linear, stacked

LINEAR = "linear"  # in what crosses the cut: the features and which modalities are there
FEATURES = "features"  # their room among the variables
STACK = "stack"
PRETRAINED = "_pretrained"  # ends the name of features that a frozen encoder gives


class Stack(nn.Module):
    """p = sum_e w_e p_e over the networks' predictions and those of linear models.

    Kernels, biases and weights are variables of "batch_stats": they are fitted by
    `evaluation.linear`, never by the optimiser. Before that the first network has all the weight.
    The weight of an expert that reads an absent modality goes to the others.

    Attributes:
        linear: how the task's linear models are fitted and mixed.
        networks: features of a modality that a network's prediction needs, "" for none; one each.
        experts: the names of the features that each linear model reads.
        sizes: name -> how many there are.
    """

    linear: Linear
    networks: tuple[str, ...]
    experts: tuple[tuple[str, ...], ...]
    sizes: Mapping[str, int]

    @nn.compact
    def __call__(
        self,
        predictions: Sequence[jax.Array],
        features: Mapping[str, jax.Array],
        present: Mapping[str, jax.Array],
        **mode: Any,
    ) -> jax.Array:
        del mode
        rows = predictions[0].shape[0]
        there = [present[name] if name else jnp.ones(rows, bool) for name in self.networks]
        found = list(predictions)
        for i, names in enumerate(self.experts):
            width = sum(self.sizes[name] for name in names)
            kernel = self._fitted(f"kernel{i}", (width, self.linear.size))
            bias = self._fitted(f"bias{i}", (self.linear.size,))
            x = jnp.concatenate([features[name] for name in names], axis=-1)
            found.append(x @ kernel + bias)
            there.append(jnp.stack([present[name] for name in names]).any(0))
        each = stacked(found)
        known = jnp.stack(there, axis=1)
        first = jnp.zeros(len(found)).at[0].set(1.0)
        weights = self.variable("batch_stats", "weights", lambda: first).value
        self.sow("intermediates", "experts", each)
        self.sow("intermediates", "present", known)
        return self.linear.mix(each, shares(weights, known))

    def _fitted(self, name: str, shape: tuple[int, ...]) -> jax.Array:
        value = self.variable("batch_stats", name, jnp.zeros, shape, jnp.float32).value
        return jax.lax.stop_gradient(value)


def shares(weights: jax.Array, known: jax.Array) -> jax.Array:
    """`[B, E]` that sum to 1 over the experts that are there; those of the first where none is."""
    own = jnp.where(known, weights, 0.0)
    total = own.sum(1, keepdims=True)
    first = jnp.zeros_like(own).at[:, 0].set(1.0)
    return jnp.where(total > 0, own / jnp.where(total > 0, total, 1.0), first)


@dataclasses.dataclass(frozen=True, eq=False)
class LinearModels:
    """All linear models of a model.

    Attributes:
        encoders: name of some features -> their formula.
        modalities: name of some features -> the modality that they are of.
        backbones: name of some features -> the modality's frozen encoder, whose mean token is read.
        stacks: task -> the mixture.
        networks: task -> the tasks whose predictions its networks are, itself first.
    """

    encoders: Mapping[str, FixedEncoder]
    modalities: Mapping[str, str]
    backbones: Mapping[str, Encoder]
    stacks: Mapping[str, Stack]
    networks: Mapping[str, tuple[str, ...]]

    def entry(self, forward: ForwardPass, name: str, inputs: Mapping[str, Any]) -> Any:
        """The cleaned inputs that a formula reads; None where the batch lacks the modality."""
        modality = self.modalities[name]
        if modality not in inputs:
            return None
        entry = inputs[modality]
        if name not in self.backbones:
            return entry
        tokens = forward(f"encoders/{modality}", self.backbones[name], entry, record=False)
        return {"x": jax.lax.stop_gradient(tokens.mean()), "present": entry["present"]}

    def read(self, forward: ForwardPass, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """`{"features": {name: [B, D]}, "present": {name: [B]}}` of cleaned inputs."""
        rows = next(iter(inputs.values()))["present"]
        features, present = {}, {}
        for name, encoder in self.encoders.items():
            entry = self.entry(forward, name, inputs)
            if entry is not None:
                features[name] = forward(f"{FEATURES}/{name}", encoder, entry, method="vectors")
                present[name] = entry["present"]
            else:
                features[name] = jnp.zeros((rows.shape[0], encoder.size), jnp.float32)
                present[name] = jnp.zeros_like(rows)
        return {"features": features, "present": present}

    def mixed(
        self, forward: ForwardPass, predictions: Mapping[str, Any], read: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The predictions of all tasks, those with linear models mixed."""
        changed = {
            name: forward(
                f"{STACK}/{name}",
                stack,
                [predictions[other] for other in self.networks[name]],
                read["features"],
                read["present"],
            )
            for name, stack in self.stacks.items()
        }
        return {**predictions, **changed}

    def names(self, task: str) -> tuple[str, ...]:
        """Of a task's experts: "network", "network, image", "linear", "linear, image"."""
        stack = self.stacks[task]
        networks = [f"network, {name}" if name else "network" for name in stack.networks]
        several = len(stack.experts) > 1
        linear = [
            "linear" if several and len(names) > 1 else f"linear, {'+'.join(names)}"
            for names in stack.experts
        ]
        return (*networks, *linear)


def linear_models(
    config: Any,
    encoders: Mapping[str, Any],
    configs: Mapping[str, Any],
    built: Mapping[str, Task],
    spec: Spec,
) -> LinearModels | None:
    """`model.linear`: True for the fixed features of every encoded modality and the vectors of
    frozen pretrained encoders, or formulas for some modalities.

    Args:
        config: the section.
        encoders: modality -> encoder.
        configs: `model.encoders`.
        built: the tasks.
        spec: of the data.
    """
    if config in (None, False):
        return None
    where = "model.linear"
    usual = {name: kind_of(spec.modalities[name]).fixed for name in encoders}
    if config is True:
        given = {
            name: {"kind": kind, **ENCODERS[kind].linear_options}
            for name, kind in usual.items()
            if kind
        }
    else:
        choose_all(config, encoders, where, "encoded modality")
        given = {name: value for name, value in config.items() if value is not None}
    found = {name: _features(name, given[name], spec, f"{where}.{name}") for name in given}
    found = {name: encoder for name, encoder in found.items() if encoder is not None}
    of = {name: name for name in found}
    backbones = _frozen(encoders, configs) if config is True else {}
    for name, backbone in backbones.items():
        of[name], size = name.removesuffix(PRETRAINED), backbone.features
        found[name] = FrozenVectors(1, modality=name, shape=(size,))
    stacks, networks = {}, {}
    for name, task in built.items():
        if task.linear is None or _alone(name, task, built):
            continue
        made_from = spec.targets[task.target].made_from if task.target else ()
        read = dict.fromkeys(m for r in task.reads for m in modalities_of(r, encoders))
        seen = [name for name, m in of.items() if m in read and m not in made_from]
        if not seen:
            continue
        experts = tuple((m,) for m in seen)
        experts = (*experts, tuple(seen)) if len(seen) > 1 else experts
        own = {
            other: m
            for m in seen
            if (other := f"{name}_{m}") in built and _alone(other, built[other], built)
        }
        networks[name] = (name, *own)
        sizes = {name: found[name].size for name in seen}
        stacks[name] = Stack(task.linear, ("", *own.values()), experts, sizes)
    if not stacks:
        raise ConfigError(
            f"{where}: no task has a linear model of {', '.join(found) or 'these modalities'}; "
            "classification, multilabel and regression have one; set it to None"
        )
    return LinearModels(found, of, backbones, stacks, networks)


def _frozen(encoders: Mapping[str, Any], configs: Mapping[str, Any]) -> dict[str, Encoder]:
    """Name of features -> a frozen pretrained encoder, without its last linear map."""
    return {
        f"{name}{PRETRAINED}": encoders[name].clone(projected=False, parent=None, name=None)
        for name, section in sections(configs).items()
        if name in encoders and not section.get("tune", 0.0)
    }


def _alone(name: str, task: Task, built: Mapping[str, Task]) -> bool:
    """Whether a task is another one's head of a single modality."""
    if len(task.reads) != 1:
        return False
    parent = built.get(name.removesuffix(f"_{task.reads[0]}"))
    return parent is not None and parent is not task and parent.target == task.target


def _features(name: str, config: Any, spec: Spec, where: str) -> FixedEncoder | None:
    modality = spec.modalities[name]
    table = {kind: row for kind, row in ENCODERS.items() if _is_fixed(row)}
    encoder = registry.build(
        table,
        config,
        where=where,
        width=1,
        modality=name,
        vocabulary=modality.vocabulary or 0,
        rate=modality.rate,
        shape=modality.shape,
    )
    if encoder.accepts(modality):
        return encoder
    if registry.entry_of(config)["kind"] == kind_of(modality).fixed:  # of an unusual shape
        return None
    fitting = [kind for kind, row in table.items() if row.accepts(modality)]
    raise ConfigError(
        f"{where}: {type(encoder).__name__} does not read {modality.kind} of shape "
        f"{modality.shape}; choices: {', '.join(fitting) or 'none'}"
    )


def _is_fixed(row: Any) -> bool:
    return isinstance(row, type) and issubclass(row, FixedEncoder)
