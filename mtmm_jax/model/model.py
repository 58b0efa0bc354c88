"""The assembled model: one trunk, one readout, and the losses of both.

A `Model` is pure functions over a plain dict of parameters with readable paths:

    encoders/<modality>/...   adapters/<modality>/...   bottleneck/<modality>/...
    fusion/<read>/...   sharing/...   heads/<task>/...

and, of linear models, variables that no optimiser changes: `features/<modality>`, `stack/<task>`.

It splits at the cut: `trunk(variables, inputs) -> shared`, every tensor that a task reads, and
`readout(variables, {task: shared}) -> predictions`, so that each task can be given its own copy
of the shared tensors. `split` is both as `balancing` takes them, down to the losses.

Next to the tasks' losses there may be auxiliary ones, such as the even use of experts: modules hand
them over (`layers.auxiliary`), regularisers are computed here. Their names are `auxiliaries`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mtmm_jax import balancing
from mtmm_jax.batch import Batch, Spec, Tokens, clean
from mtmm_jax.model.decision import decide
from mtmm_jax.model.forward import LEVELS, EncoderCache, ForwardPass, FusionStage
from mtmm_jax.model.linear import LINEAR, LinearModels
from mtmm_jax.model.modality_dropout import drop_modalities
from mtmm_jax.model.parameters import REWRITES, Rewrite
from mtmm_jax.registry import ConfigError
from mtmm_jax.tasks.task import Task, modalities_of
from mtmm_jax.tasks.terms.term import Regulariser, View

AUXILIARY = "auxiliary"  # in what crosses the cut: the losses that modules before it handed over
SHARED = ("encoders", "adapters", "bottleneck", "fusion")

Losses = tuple[jax.Array, jax.Array]


def shared_parameters(params: Mapping[str, Any]) -> Any:
    """The label tree of balancing: True on the leaves that more than one task learns."""
    return {
        room: shared_parameters(tree)
        if room in REWRITES
        else jax.tree.map(lambda _, room=room: room in SHARED, tree)
        for room, tree in params.items()
    }


@dataclasses.dataclass(frozen=True, eq=False)  # one model is one compile
class Model:
    """The modules of one model, and the functions over their parameters.

    Attributes:
        spec: what the data gives.
        encoders: modality -> module.
        fusions: read -> `FusionStage`, one for each distinct set of modalities that tasks fuse;
            all are at the same stage.
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
        linear: linear models of fixed features, mixed into predictions outside of training.
    """

    spec: Spec
    encoders: Mapping[str, nn.Module]
    fusions: Mapping[str, FusionStage]
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
    linear: LinearModels | None = None

    def init(self, key: jax.Array, batch: Batch) -> dict[str, Any]:
        """Variables: `{"params": ..., "batch_stats": ...}`. Pure; may be traced."""
        forward = ForwardPass({}, key, init=True)
        shared = self._trunk(forward, batch["inputs"])
        self._readout(forward, dict.fromkeys(self.tasks, shared))
        for rewrite in self.rewrites:
            own = rewrite.init(forward.key(rewrite.room), forward.variables["params"])
            if own:
                forward.variables["params"][rewrite.room] = own
        return forward.variables

    @functools.cached_property
    def shapes(self) -> dict[str, Any]:
        """The variables with shapes and dtypes, and no numbers."""
        batch = self.spec.example(2)
        return jax.eval_shape(lambda: self.init(jax.random.key(0), batch))

    def read(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        """The variables as modules read them: every rewrite applied."""
        params = variables["params"]
        for rewrite in self.rewrites:
            params = rewrite.apply(params)
        return {**variables, "params": params}

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
        forward = ForwardPass(self.read(variables), key, train=train, axis_name=axis_name)
        return self._trunk(forward, inputs), forward.updates

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
        forward = ForwardPass(self.read(variables), key, train=train, axis_name=axis_name)
        return self._readout(forward, shared), forward.updates

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

    def split(
        self, axis_name: str | None = None, measure: Callable[..., Any] | None = None
    ) -> balancing.Split:
        """The losses over `(params, batch_stats, batch, key)`, cut where each task has its copy.

        Args:
            axis_name: the devices' axis, or None.
            measure: `(shared, predictions, batch) -> (sums, terms)`: sums of this device's rows,
                returned as `aux["measured"]`, and the losses `added` to the model's, by name.
        """
        count = len(self.tasks)  # the auxiliary losses share the copy after the tasks'

        def trunk(params: Any, batch_stats: Any, batch: Batch, key: jax.Array) -> tuple[Any, Any]:
            variables = self.read({"params": params, "batch_stats": batch_stats})
            forward = ForwardPass(variables, key, train=True, axis_name=axis_name)
            return self._trunk(forward, batch["inputs"]), forward.updates.get("batch_stats", {})

        def readout(
            params: Any, copies: Any, stats: Any, batch_stats: Any, batch: Batch, key: jax.Array
        ) -> tuple[jax.Array, jax.Array, dict[str, Any]]:
            variables = self.read({"params": params, "batch_stats": batch_stats})
            forward = ForwardPass(variables, key, train=True, axis_name=axis_name)
            predictions = self._readout(forward, dict(zip(self.tasks, copies, strict=False)))
            losses = self.losses(predictions, batch, axis_name)
            aux = {"batch_stats": {**stats, **forward.updates.get("batch_stats", {})}}
            terms: dict[str, Losses] = {}
            if measure is not None:
                own = copies[count] if self.added else None
                aux["measured"], terms = measure(own, predictions, batch)
            if self.auxiliaries:
                again = ForwardPass(variables, key, train=True, axis_name=axis_name)
                more = self._auxiliary_losses(again, copies[count], batch, terms)
                losses = tuple(map(jnp.concatenate, zip(losses, more, strict=True)))
            return *losses, aux

        return balancing.Split(trunk, readout)

    def losses(
        self, predictions: Mapping[str, Any], batch: Batch, axis_name: str | None = None
    ) -> Losses:
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
        modules = [module for stage in self.fusions.values() for module in stage.modules]
        modules += [self.sharing, *self.bottlenecks.values()]
        if not any(getattr(module, "has_auxiliary", False) for module in modules):
            return (*self.regularisers, *self.added)

        def trace(key: jax.Array) -> dict[str, Losses]:
            batch = self.spec.example(2)
            forward = ForwardPass(self.init(key, batch), key, train=True)
            shared = self._trunk(forward, batch["inputs"])
            self._readout(forward, dict.fromkeys(self.tasks, shared))
            return forward.auxiliary_losses()

        return (*jax.eval_shape(trace, jax.random.key(0)), *self.regularisers, *self.added)

    @property
    def loss_names(self) -> tuple[str, ...]:
        """The tasks, then the auxiliary losses: the rows that balancing sees."""
        return (*self.tasks, *self.auxiliaries)

    @property
    def reads(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(read for task in self.tasks.values() for read in task.reads))

    def _trunk(self, forward: ForwardPass, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Read -> tokens: everything that crosses the cut, from raw inputs."""
        inputs = clean({name: inputs[name] for name in self.encoders if name in inputs})
        if not inputs:
            raise ConfigError(f"inputs: none of {', '.join(self.encoders)} is in the batch")
        middle = any(fusion.stage == "middle" for fusion in self.fusions.values())
        cache = EncoderCache(forward, self.encoders, inputs, self.spec, self.adapters, middle)
        rates, shared = self.modality_dropout, {}
        drops = forward.mode["train"] and any(rates.values())
        narrow: dict[str, Tokens] = {}  # behind the bottlenecks
        for read, fusion in self.fusions.items():
            names = modalities_of(read, self.encoders)
            for name in names:
                if name not in narrow:
                    narrow[name] = cache.tokens(name, LEVELS[fusion.stage])
                    if (module := self.bottlenecks.get(name)) is not None:
                        narrow[name] = forward(f"bottleneck/{name}", module, narrow[name])
            seen = known = {name: narrow[name] for name in names}
            if drops and len(known) > 1:
                seen = drop_modalities(forward, known, rates, tuple(inputs))
            if fusion.stage == "decision":
                shared |= {f"{read}/{name}": tokens for name, tokens in seen.items()}
            else:
                shared[read] = fusion(forward, f"fusion/{read}", seen, known, cache.second_half)
        regularised = [read for _, term in self.regularisers.values() for read in term.reads]
        for read in (*self.reads, *regularised):
            if read not in self.fusions:
                shared[read] = cache.tokens(read, "second")
        if forward.mode["train"] and "losses" in forward.updates:
            shared[AUXILIARY] = forward.auxiliary_losses()
        if self.linear is not None and not forward.mode["train"]:
            shared[LINEAR] = self.linear.read(forward, inputs)
        return shared

    def _readout(
        self, forward: ForwardPass, shared: Mapping[str, Mapping[str, Any]]
    ) -> dict[str, Any]:
        """Task -> prediction, each from its own copy of what crossed the cut."""
        # Sharing takes the copies of its own tasks: towers of others would mix into their features.
        entrances = {name: task.entrance for name, task in self.tasks.items()}
        copies = {
            name: shared[name][read] for name, read in entrances.items() if read in shared[name]
        }
        own = forward("sharing", self.sharing, copies) if copies else {}
        predictions = {}
        for name, task in self.tasks.items():
            if name in self.decisions:
                predictions[name] = self._decide(forward, name, shared[name])
                continue
            tokens = {read: shared[name][read] for read in task.reads}
            if name in own:
                tokens[entrances[name]] = own[name]
            if name in self.probes:
                tokens = {read: part.stop_gradient() for read, part in tokens.items()}
            tokens = self._reversed(forward, name, tokens)
            predictions[name] = forward(f"heads/{name}", task.head, tokens)
        if self.linear is not None and not forward.mode["train"]:
            first = next(iter(self.tasks))
            predictions = self.linear.mixed(forward, predictions, shared[first][LINEAR])
        return predictions

    def _decide(self, forward: ForwardPass, name: str, shared: Mapping[str, Tokens]) -> Any:
        """A task's prediction from each modality's own, at stage decision."""
        head, (read,) = self.tasks[name].head, self.tasks[name].reads
        alone = {
            modality: self._reversed(forward, name, {read: shared[f"{read}/{modality}"]})
            for modality in modalities_of(read, self.encoders)
        }
        return decide(forward, name, head, self.decisions[name], alone)

    def _reversed(
        self, forward: ForwardPass, name: str, tokens: dict[str, Tokens]
    ) -> dict[str, Tokens]:
        """The tokens that a head reads, with its gradient reversed where the task has a
        `reversal`."""
        reversal = self.tasks[name].reversal
        if reversal is None:
            return tokens
        values = {read: part.values for read, part in tokens.items()}
        values = forward(f"heads/{name}/reversal", reversal, values)
        return {read: part.replace_values(values[read]) for read, part in tokens.items()}

    def _auxiliary_losses(
        self,
        forward: ForwardPass,
        shared: Mapping[str, Any],
        batch: Batch,
        terms: Mapping[str, Losses],
    ) -> Losses:
        """`(sums[R], counts[R])` in the order of `auxiliaries`, from their own copy of `shared`.

        Args:
            forward: a pass of their own over the readout.
            shared: a copy that no task reads, so that their gradient goes to no task.
            batch: tells which rows are present.
            terms: name -> `(sum, count)` of the losses that the training step computed.
        """
        predictions = self._readout(forward, dict.fromkeys(self.tasks, shared))
        found = {**shared.get(AUXILIARY, {}), **forward.auxiliary_losses(), **terms}
        present = self.present(batch)
        rows = {
            name: jnp.stack([present[read] for read in task.reads]).all(0)
            for name, task in self.tasks.items()
        }
        axis_name, params = forward.mode["axis_name"], forward.variables["params"]
        view = View(params, shared, predictions, rows, axis_name, batch["targets"])
        for name, (scale, regulariser) in self.regularisers.items():
            total, count = regulariser.term(view)
            found[name] = (scale * total, count)
        pairs = [found.get(name, (jnp.float32(0), jnp.float32(0))) for name in self.auxiliaries]
        sums, counts = zip(*pairs, strict=True)
        return jnp.stack(sums), jnp.stack(counts)
