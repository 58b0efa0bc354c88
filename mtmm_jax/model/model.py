"""The assembled model: one trunk, one readout, and what both give.

A `Model` is pure functions over a plain dict of parameters with readable paths:

    encoders/<modality>/...   adapters/<modality>/...   bottleneck/<modality>/...
    fusion/<read>/...   sharing/...   heads/<task>/...

It splits at the cut: `trunk(variables, inputs) -> shared`, every tensor that a task reads, and
`readout(variables, {task: shared}) -> predictions`, so that each task can be given its own copy
of the shared tensors.

Beside the tasks' losses there may be auxiliary ones, such as the even use of experts: modules hand
them over (`layers.auxiliary`), regularisers are computed here. Their names are `auxiliaries`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mtmm_jax.batch import Batch, Spec, Tokens
from mtmm_jax.layers import Run
from mtmm_jax.model.readout import readout
from mtmm_jax.model.rewrite import Rewrite
from mtmm_jax.model.stages import Fusing
from mtmm_jax.model.trunk import AUXILIARY, terms, trunk
from mtmm_jax.tasks.task import Task, modalities_of
from mtmm_jax.tasks.terms.term import Regulariser, View


@dataclasses.dataclass(frozen=True, eq=False)  # one model is one compile
class Model:
    """The modules of one model, and the functions over their parameters.

    Attributes:
        spec: what the data gives.
        encoders: modality -> module.
        fusions: read -> `Fusing`, one for each distinct set of modalities that tasks fuse.
        decisions: task -> module that fuses its predictions, at stage decision.
        regularisers: name -> (lambda alpha, `Regulariser`).
        sharing: the module between fusion and heads.
        tasks: name -> `Task`, each with its head.
        modality_dropout: modality -> the chance that fusion does not see it in training; a sample
            keeps at least one.
        probes: the tasks whose heads only score: no gradient passes from them to the tokens.
        added: the names of auxiliary losses that the training step computes, after the model's.
        rewrites: what makes the parameters that modules read out of those that are learned.
        bottlenecks: modality -> module that its tokens pass on their way into fusion.
        adapters: modality -> module that whatever leaves its encoder passes.
    """

    spec: Spec
    encoders: Mapping[str, nn.Module]
    fusions: Mapping[str, Fusing]
    sharing: nn.Module
    tasks: Mapping[str, Task]
    modality_dropout: Mapping[str, float] = dataclasses.field(default_factory=dict)
    decisions: Mapping[str, nn.Module] = dataclasses.field(default_factory=dict)
    regularisers: Mapping[str, tuple[float, Regulariser]] = dataclasses.field(default_factory=dict)
    probes: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    rewrites: tuple[Rewrite, ...] = ()
    bottlenecks: Mapping[str, nn.Module] = dataclasses.field(default_factory=dict)
    adapters: Mapping[str, nn.Module] = dataclasses.field(default_factory=dict)

    def init(self, key: jax.Array, batch: Batch) -> dict[str, Any]:
        """Variables: `{"params": ..., "batch_stats": ...}`. Pure; may be traced."""
        run = Run({}, key, {"train": False, "axis_name": None}, init=True)
        shared = trunk(self, run, batch["inputs"])
        readout(self, run, dict.fromkeys(self.tasks, shared))
        for rewrite in self.rewrites:
            own = rewrite.init(run.key(rewrite.room), run.variables["params"])
            if own:
                run.variables["params"][rewrite.room] = own
        return run.variables

    def read(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        """The variables as modules read them: every rewrite applied."""
        params = variables["params"]
        for rewrite in self.rewrites:
            params = rewrite.apply(params)
        return {**variables, "params": params}

    @functools.cached_property
    def shapes(self) -> dict[str, Any]:
        """The variables with shapes and dtypes, and no numbers."""
        batch = self.spec.example(2)
        return jax.eval_shape(lambda: self.init(jax.random.key(0), batch))

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
        run = Run(self.read(variables), key, {"train": train, "axis_name": axis_name})
        return trunk(self, run, inputs), run.updates

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
        run = Run(self.read(variables), key, {"train": train, "axis_name": axis_name})
        return readout(self, run, shared), run.updates

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

    @functools.cached_property
    def auxiliaries(self) -> tuple[str, ...]:
        """The names of the auxiliary losses: modules' paths, the regularisers', those added."""
        fusings = [
            [f.fusion, f.second, f.trunk, f.missing, f.align, *f.into.values()]
            for f in self.fusions.values()
        ]
        modules = [m for parts in fusings for m in parts]
        modules += [self.sharing, *self.bottlenecks.values()]
        if not any(getattr(module, "has_auxiliary", False) for module in modules):
            return (*self.regularisers, *self.added)

        def trace(key: jax.Array) -> dict[str, Any]:
            batch = self.spec.example(2)
            variables = self.init(key, batch)
            run = Run(variables, key, {"train": True, "axis_name": None})
            whole = dataclasses.replace(self, regularisers={})
            whole.__dict__["auxiliaries"] = ()  # what is being found out
            copies = dict.fromkeys(self.tasks, trunk(whole, run, batch["inputs"]))
            readout(whole, run, copies)
            return dict(terms(run.updates))

        return (*jax.eval_shape(trace, jax.random.key(0)), *self.regularisers, *self.added)

    def auxiliary_losses(
        self,
        variables: Mapping[str, Any],
        shared: Mapping[str, Any],
        batch: Batch,
        more: Mapping[str, tuple[jax.Array, jax.Array]] | None = None,
        **mode: Any,
    ) -> tuple[jax.Array, jax.Array]:
        """`(sums[R], counts[R])` in the order of `auxiliaries`, of this device's rows.

        Args:
            variables: as for `readout`.
            shared: their own copy of what crosses the cut: what they pull goes to no task.
            batch: tells who is present.
            more: name -> `(sum, count)` of those that were added.
            **mode: as for `readout`.
        """
        copies = dict.fromkeys(self.tasks, shared)
        predictions, updates = self.readout(variables, copies, **mode)
        handed = {**shared.get(AUXILIARY, {}), **dict(terms(updates)), **(more or {})}
        present = self.present(batch)
        here = {
            name: jnp.stack([present[read] for read in task.reads]).all(0)
            for name, task in self.tasks.items()
        }
        params = self.read(variables)["params"]
        axis_name = mode.get("axis_name")
        view = View(params, shared, predictions, here, axis_name, batch["targets"])
        for name, (scale, regulariser) in self.regularisers.items():
            total, count = regulariser.term(view)
            handed[name] = (scale * total, count)
        pairs = [handed.get(name, (jnp.float32(0), jnp.float32(0))) for name in self.auxiliaries]
        sums, counts = zip(*pairs, strict=True)
        return jnp.stack(sums), jnp.stack(counts)

    @property
    def loss_names(self) -> tuple[str, ...]:
        """The tasks, then the auxiliary losses: the rows that balancing sees."""
        return (*self.tasks, *self.auxiliaries)

    @property
    def reads(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(read for task in self.tasks.values() for read in task.reads))
