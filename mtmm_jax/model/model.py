"""Assembles encoders, fusion, sharing and heads from a config; nothing else does.

A `Model` is pure functions over a plain dict of parameters with readable paths:

    encoders/<modality>/...   fusion/<read>/...   sharing/...   heads/<task>/...

It splits at the cut: `trunk(variables, inputs) -> shared`, every tensor that a task reads, and
`readout(variables, {task: shared}) -> predictions`, so that each task can be given its own copy
of the shared tensors.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util

from mtmm_jax import fusion, heads, registry, sharing, tasks
from mtmm_jax.batch import Batch, Spec, Tokens, choose_all, clean
from mtmm_jax.encoders import ENCODERS
from mtmm_jax.layers import Run, batch_bernoulli
from mtmm_jax.registry import ConfigError
from mtmm_jax.tasks.task import FUSED, Task, modalities_of, parse_reads

MODEL_KEYS = ("width", "encoders", "fusion", "sharing", "modality_dropout")
SHARED = ("encoders", "fusion")


@dataclasses.dataclass(frozen=True, eq=False)  # one model is one compile
class Model:
    """The modules of one model, and the functions over their parameters.

    Attributes:
        spec: what the data gives.
        encoders: modality -> module.
        fusions: read -> module, one for each distinct set of modalities that tasks fuse.
        sharing: the module between fusion and heads.
        tasks: name -> `Task`, each with its head.
        modality_dropout: the chance that fusion does not see a modality in training; a sample
            keeps at least one.
    """

    spec: Spec
    encoders: Mapping[str, nn.Module]
    fusions: Mapping[str, nn.Module]
    sharing: nn.Module
    tasks: Mapping[str, Task]
    modality_dropout: float = 0.0

    def init(self, key: jax.Array, batch: Batch) -> dict[str, Any]:
        """Variables: `{"params": ..., "batch_stats": ...}`. Pure; may be traced."""
        run = Run({}, key, {"train": False, "axis_name": None}, init=True)
        shared = self._trunk(run, batch["inputs"])
        self._readout(run, dict.fromkeys(self.tasks, shared))
        return run.variables

    def trunk(
        self,
        variables: Mapping[str, Any],
        inputs: Mapping[str, Any],
        *,
        train: bool = False,
        key: jax.Array | None = None,
        axis_name: str | None = None,
    ) -> tuple[dict[str, Tokens], dict[str, Any]]:
        """Everything that tasks read, and `{"batch_stats": ..., "intermediates": ...}`."""
        run = Run(variables, key, {"train": train, "axis_name": axis_name})
        return self._trunk(run, inputs), run.updates

    def readout(
        self,
        variables: Mapping[str, Any],
        shared: Mapping[str, Mapping[str, Tokens]],
        *,
        train: bool = False,
        key: jax.Array | None = None,
        axis_name: str | None = None,
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """`{task: prediction}` from `{task: its copy of shared}`, and intermediates."""
        run = Run(variables, key, {"train": train, "axis_name": axis_name})
        return self._readout(run, shared), run.updates

    def __call__(
        self, variables: Mapping[str, Any], inputs: Mapping[str, Any], **mode: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """`({task: prediction}, intermediates)`."""
        shared, first = self.trunk(variables, inputs, **mode)
        copies = dict.fromkeys(self.tasks, shared)
        predictions, second = self.readout(variables, copies, **mode)
        return predictions, {
            **first.get("intermediates", {}),
            **second.get("intermediates", {}),
        }

    def losses(
        self, predictions: Mapping[str, Any], batch: Batch, axis_name: str | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """`(sums[K], counts[K])` in the order of `tasks`, of this device's rows."""
        present = self.present(batch)
        pairs = [
            task.loss(predictions[name], task.labels(batch, present), axis_name)
            for name, task in self.tasks.items()
        ]
        sums, counts = zip(*pairs, strict=True)
        return jnp.stack(sums), jnp.stack(counts)

    def present(self, batch: Batch) -> dict[str, jax.Array]:
        """Read -> `[B]` bool: whether any of its modalities is there."""
        inputs = batch["inputs"]
        rows = next(iter(inputs.values()))["present"]
        nobody = jnp.zeros_like(rows)
        return {
            read: jnp.stack(
                [
                    inputs[name]["present"] if name in inputs else nobody
                    for name in modalities_of(read, self.encoders)
                ]
            ).any(0)
            for read in self.reads
        }

    @property
    def reads(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(read for task in self.tasks.values() for read in task.reads))

    def _trunk(self, run: Run, inputs: Mapping[str, Any]) -> dict[str, Tokens]:
        inputs = clean({name: inputs[name] for name in self.encoders if name in inputs})
        if not inputs:
            raise ConfigError(f"inputs: none of {', '.join(self.encoders)} is in the batch")
        encoded = {}
        for name, entry in inputs.items():
            tokens = run(f"encoders/{name}", self.encoders[name], entry)
            # The outputs of an absent modality are those of its filler's zeros: silence them too.
            quiet = jnp.where(tokens.mask[..., None], tokens.values, 0)
            encoded[name] = tokens.replace_values(quiet.astype(tokens.values.dtype))
        seen = self._drop_modalities(run, encoded)
        shared = {}
        for read in self.reads:
            if read in self.fusions:
                names = modalities_of(read, self.encoders)
                parts = {name: self._tokens(name, seen, run) for name in names}
                shared[read] = run(f"fusion/{read}", self.fusions[read], parts)
            else:
                shared[read] = self._tokens(read, encoded, run)
        return shared

    def _tokens(self, name: str, encoded: Mapping[str, Tokens], run: Run) -> Tokens:
        """A modality's tokens; one that is absent from the whole batch has no row present.

        Its encoder is not run: only the shapes of what it would give are needed.
        """
        if name in encoded:
            return encoded[name]
        rows = next(iter(encoded.values())).mask.shape[0]
        entry = self.spec.example(rows)["inputs"][name]
        own = run.own(f"encoders/{name}")
        shapes = jax.eval_shape(lambda: self.encoders[name].apply(own, entry))
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    def _drop_modalities(self, run: Run, encoded: dict[str, Tokens]) -> dict[str, Tokens]:
        if not (run.mode["train"] and self.modality_dropout and len(encoded) > 1):
            return encoded
        present = jnp.stack([tokens.present for tokens in encoded.values()], axis=-1)
        keep = batch_bernoulli(
            run.key("modality_dropout"),
            1.0 - self.modality_dropout,
            present.shape,
            run.mode["axis_name"],
        )
        kept = present & keep
        kept = jnp.where(kept.any(-1, keepdims=True), kept, present)
        return {
            name: dataclasses.replace(tokens, mask=tokens.mask & kept[:, i : i + 1])
            for i, (name, tokens) in enumerate(encoded.items())
        }

    def _readout(self, run: Run, shared: Mapping[str, Mapping[str, Tokens]]) -> dict[str, Any]:
        fused = {name: shared[name][FUSED] for name in self.tasks if FUSED in shared[name]}
        own = run("sharing", self.sharing, fused) if fused else {}
        predictions = {}
        for name, task in self.tasks.items():
            read = {
                r: own[name] if r == FUSED and name in own else shared[name][r] for r in task.reads
            }
            predictions[name] = run(f"heads/{name}", task.head, read)
        return predictions


def shared_parameters(params: Mapping[str, Any]) -> Any:
    """The label tree of balancing: True on the leaves that more than one task learns."""
    return {
        room: jax.tree.map(lambda _, room=room: room in SHARED, tree)
        for room, tree in params.items()
    }


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """`{path: leaf}`, with paths such as `encoders/image/conv1/kernel`."""
    return traverse_util.flatten_dict(tree, sep="/")


def build(model: Mapping[str, Any], task_configs: Mapping[str, Any], spec: Spec) -> Model:
    """Assembles a model from `config.model`, `config.tasks` and the data's `Spec`.

    Every name and size is checked here, before anything compiles.
    """
    choose_all(model, MODEL_KEYS, "model", "key")
    width = model["width"]
    modality_dropout = model.get("modality_dropout", 0.0)
    if not 0.0 <= modality_dropout < 1.0:
        raise ConfigError(f"model.modality_dropout: {modality_dropout} is not in [0, 1)")
    encoders = _encoders(model.get("encoders") or {}, width, spec)
    make_head = _head_builder()
    built: dict[str, Task] = {}
    configs = {name: config for name, config in task_configs.items() if config is not None}
    if not configs:
        raise ConfigError("tasks: is empty; a model needs at least one task")
    for name, config in configs.items():
        built[name] = _task(name, config, encoders, spec, make_head)
    fusions = {
        read: _fusion(model["fusion"], len(modalities_of(read, encoders)), width)
        for task in built.values()
        for read in task.reads
        if read == FUSED or "+" in read
    }
    shared = registry.build(
        sharing.SHARINGS, model.get("sharing", "hard"), where="model.sharing", tasks=tuple(built)
    )
    return Model(spec, encoders, fusions, shared, built, modality_dropout)


def _encoders(configs: Mapping[str, Any], width: int, spec: Spec) -> dict[str, nn.Module]:
    encoders = {}
    for name, config in configs.items():
        if config is None:
            continue
        where = f"model.encoders.{name}"
        registry.choose(name, spec.modalities, where, "modality")
        modality = spec.modalities[name]
        encoder = registry.build(
            ENCODERS,
            config,
            where=where,
            width=width,
            modality=name,
            vocabulary=modality.vocabulary,
            rate=modality.rate,
        )
        if not encoder.accepts(modality):
            fitting = [kind for kind, entry in ENCODERS.items() if entry.accepts(modality)]
            raise ConfigError(
                f"{where}.kind: {type(encoder).__name__} does not read {modality.kind} of shape "
                f"{modality.shape}; choices: {', '.join(fitting) or 'none'}"
            )
        encoders[name] = encoder
    if not encoders:
        raise ConfigError(f"model.encoders: is empty; the data has {', '.join(spec.modalities)}")
    return encoders


def _fusion(config: Any, count: int, width: int) -> nn.Module:
    module = registry.build(fusion.FUSIONS, config, where="model.fusion", width=width)
    fewest, most = module.modalities
    if count < fewest or (most is not None and count > most):
        raise ConfigError(
            f"model.fusion: {type(module).__name__} fuses {fewest} to {most} modalities, "
            f"not {count}"
        )
    return module


def _head_builder() -> Callable[..., nn.Module]:
    def make_head(config: Any, *, where: str, **context: Any) -> nn.Module:
        return registry.build(heads.HEADS, config, where=where, **context)

    return make_head


def _task(
    name: str, config: Any, encoders: Iterable[str], spec: Spec, make_head: Callable[..., Any]
) -> Task:
    where = f"tasks.{name}"
    config = dict({"kind": config} if isinstance(config, str) else config)
    reads = parse_reads(config.pop("reads", FUSED), spec.modalities, where)
    for read in reads:
        for modality in modalities_of(read, encoders):
            if modality not in encoders:
                raise ConfigError(
                    f"{where}.reads: {modality!r} has no encoder; model.encoders has: "
                    f"{', '.join(encoders)}"
                )
    task = registry.build(
        tasks.TASKS, config, name, spec, where=where, reads=reads, make_head=make_head
    )
    if task.target is not None:
        read_modalities = {m for read in reads for m in modalities_of(read, encoders)}
        leaks = sorted(read_modalities & set(spec.targets[task.target].made_from))
        if leaks:
            raise ConfigError(
                f"{where}.reads: {', '.join(reads)}: the label {task.target!r} is made from "
                f"{', '.join(leaks)}; read others: "
                f"{', '.join(sorted(set(encoders) - set(leaks))) or 'none'}"
            )
    return task
