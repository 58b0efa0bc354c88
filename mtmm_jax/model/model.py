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
from collections.abc import Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax import lax

from mtmm_jax.batch import Batch, Spec, Tokens, clean
from mtmm_jax.layers import Run, batch_bernoulli
from mtmm_jax.model.rewrite import REWRITES, Rewrite
from mtmm_jax.model.stages import LEVELS, Fusing, Levels
from mtmm_jax.registry import ConfigError
from mtmm_jax.tasks.task import FUSED, Task, modalities_of
from mtmm_jax.tasks.terms import Regulariser, View

SHARED = ("encoders", "adapters", "bottleneck", "fusion")
AUXILIARY = "auxiliary"


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
        modality_dropout: the chance that fusion does not see a modality in training; a sample
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
    modality_dropout: float = 0.0
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
        shared = self._trunk(run, batch["inputs"])
        self._readout(run, dict.fromkeys(self.tasks, shared))
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
        run = Run(self.read(variables), key, {"train": train, "axis_name": axis_name})
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
            copies = dict.fromkeys(self.tasks, whole._trunk(run, batch["inputs"]))
            whole._readout(run, copies)
            return dict(_terms(run.updates))

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
        terms = {**shared.get(AUXILIARY, {}), **dict(_terms(updates)), **(more or {})}
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
            terms[name] = (scale * total, count)
        pairs = [terms.get(name, (jnp.float32(0), jnp.float32(0))) for name in self.auxiliaries]
        sums, counts = zip(*pairs, strict=True)
        return jnp.stack(sums), jnp.stack(counts)

    @property
    def loss_names(self) -> tuple[str, ...]:
        """The tasks, then the auxiliary losses: the rows that balancing sees."""
        return (*self.tasks, *self.auxiliaries)

    @property
    def reads(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(read for task in self.tasks.values() for read in task.reads))

    def _trunk(self, run: Run, inputs: Mapping[str, Any]) -> dict[str, Any]:
        inputs = clean({name: inputs[name] for name in self.encoders if name in inputs})
        if not inputs:
            raise ConfigError(f"inputs: none of {', '.join(self.encoders)} is in the batch")
        middle = any(fusing.stage == "middle" for fusing in self.fusions.values())
        levels = Levels(run, self.encoders, inputs, self._example, middle)
        encoded = functools.cache(lambda *key: self._adapted(run, key[0], levels.get(*key)))
        shared: dict[str, Any] = {}
        narrow: dict[str, Tokens] = {}  # every fusion is at the same stage
        for read, fusing in self.fusions.items():
            names = modalities_of(read, self.encoders)
            for name in names:
                if name not in narrow:
                    tokens = encoded(name, LEVELS[fusing.stage])
                    narrow[name] = self._narrowed(run, name, tokens)
            known = {name: narrow[name] for name in names}
            seen = self._drop_modalities(run, known, tuple(inputs))
            if fusing.stage == "decision":
                shared |= {f"{read}/{name}": tokens for name, tokens in seen.items()}
            else:
                path = f"fusion/{read}"
                shared[read] = fusing(run, path, seen, known, levels.second)
        more = [read for _, term in self.regularisers.values() for read in term.reads]
        for read in (*self.reads, *more):
            if read not in self.fusions:
                shared[read] = encoded(read, "second")
        if run.mode["train"] and self.auxiliaries:
            shared[AUXILIARY] = dict(_terms(run.updates))
        return shared

    def _example(self, name: str, rows: int) -> Any:
        return self.spec.example(rows)["inputs"][name]

    def _adapted(self, run: Run, name: str, tokens: Tokens) -> Tokens:
        """What a modality's adapter makes of what left its encoder."""
        if name not in self.adapters:
            return tokens
        return run(f"adapters/{name}", self.adapters[name], tokens)

    def _narrowed(self, run: Run, name: str, tokens: Tokens) -> Tokens:
        """What a modality's bottleneck lets through to fusion."""
        if name not in self.bottlenecks:
            return tokens
        return run(f"bottleneck/{name}", self.bottlenecks[name], tokens)

    def _drop_modalities(
        self, run: Run, known: Mapping[str, Tokens], inputs: tuple[str, ...]
    ) -> dict[str, Tokens]:
        """What fusion sees in training. A modality is dropped from all fusions alike."""
        if not (run.mode["train"] and self.modality_dropout and len(known) > 1):
            return dict(known)
        present = jnp.stack([tokens.present for tokens in known.values()], axis=-1)
        keep = batch_bernoulli(
            run.key("modality_dropout"),
            1.0 - self.modality_dropout,
            (present.shape[0], len(inputs)),
            run.mode["axis_name"],
        )
        here = [keep[:, inputs.index(n)] if n in inputs else keep[:, 0] for n in known]
        kept = present & jnp.stack(here, axis=-1)
        kept = jnp.where(kept.any(-1, keepdims=True), kept, present)
        return {
            name: dataclasses.replace(tokens, mask=tokens.mask & kept[:, i : i + 1])
            for i, (name, tokens) in enumerate(known.items())
        }

    def _readout(self, run: Run, shared: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        # Towers of tasks that read something else would mix into the others' features.
        reading = [name for name, task in self.tasks.items() if FUSED in task.reads]
        fused = {name: shared[name][FUSED] for name in reading if FUSED in shared[name]}
        own = run("sharing", self.sharing, fused) if fused else {}
        predictions = {}
        for name, task in self.tasks.items():
            if name in self.decisions:
                predictions[name] = self._decide(run, name, shared[name])
                continue
            read = {
                r: own[name] if r == FUSED and name in own else shared[name][r] for r in task.reads
            }
            if name in self.probes:
                read = {r: t.replace_values(lax.stop_gradient(t.values)) for r, t in read.items()}
            read = self._reversed(run, name, read)
            predictions[name] = run(f"heads/{name}", task.head, read)
        return predictions

    def _reversed(self, run: Run, name: str, read: dict[str, Tokens]) -> dict[str, Tokens]:
        """What a head reads; the gradient that it sends back is turned round where it is to."""
        reversal = self.tasks[name].reversal
        if reversal is None:
            return read
        values = {r: t.values for r, t in read.items()}
        turned = run(f"heads/{name}/reversal", reversal, values)
        return {r: t.replace_values(turned[r]) for r, t in read.items()}

    def _decide(self, run: Run, name: str, shared: Mapping[str, Tokens]) -> Any:
        """A task's prediction from each modality's own, by its own head."""
        (read,) = self.tasks[name].reads
        values, present = [], []
        for modality in modalities_of(read, self.encoders):
            (tokens,) = self._reversed(run, name, {read: shared[f"{read}/{modality}"]}).values()
            alone = run(f"heads/{name}/{modality}", self.tasks[name].head, {read: tokens})
            flat, rebuild = _flattened(alone, name)
            values.append(flat)
            present.append(tokens.present)
        stacked = jnp.stack(values, axis=1), jnp.stack(present, axis=1)
        return rebuild(run(f"heads/{name}/decision", self.decisions[name], *stacked))


def _flattened(prediction: Any, task: str) -> tuple[jax.Array, Any]:
    """`[B, P]` of all that a head predicts, and the way back."""
    leaves, treedef = jax.tree.flatten(prediction)
    rows = leaves[0].shape[:1]
    for leaf in leaves:
        if leaf.shape[:1] != rows or not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ConfigError(
                f"model.fusion.stage: 'decision' fuses numbers for each sample; tasks.{task} "
                "predicts something else; choices: early, middle, late"
            )
    sizes = [leaf[0].size for leaf in leaves]
    flat = jnp.concatenate([x.reshape(x.shape[0], -1) for x in leaves], axis=-1)

    def rebuild(fused: jax.Array) -> Any:
        parts = jnp.split(fused, np.cumsum(sizes)[:-1], axis=-1)
        back = [p.reshape(leaf.shape) for p, leaf in zip(parts, leaves, strict=True)]
        return jax.tree.unflatten(treedef, back)

    return flat, rebuild


def _terms(updates: Mapping[str, Any]) -> Iterator[tuple[str, tuple[jax.Array, jax.Array]]]:
    """Path -> `(sum, count)` of the auxiliary losses that modules handed over."""
    for path, handed in flatten(updates.get("losses", {})).items():
        for i, term in enumerate(handed):
            yield (path if i == 0 else f"{path}_{i + 1}"), term


def shared_parameters(params: Mapping[str, Any]) -> Any:
    """The label tree of balancing: True on the leaves that more than one task learns."""
    return {
        room: shared_parameters(tree)
        if room in REWRITES
        else jax.tree.map(lambda _, room=room: room in SHARED, tree)
        for room, tree in params.items()
    }


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """`{path: leaf}`, with paths such as `encoders/image/conv1/kernel`."""
    return traverse_util.flatten_dict(tree, sep="/")
