"""One forward pass: modules applied by path, encoders run once, fusion at its stage.

Where fusion happens, `STAGES`: on the stems' tokens, between two halves, on the bodies' outputs.

    early          h = trunk(fuse(stem_1(x_1), .., stem_M(x_M)))
    early_raw      the same, each x_m flattened and projected instead of encoded
    middle         h1 = fuse1(first_m(x_m));  h = fuse2(second_m(h1))
    middle_shared  h = trunk(fuse(first_m(x_m)))
    late           h = fuse(second_m(first_m(stem_m(x_m))))
    decision       no features are fused: every modality predicts, and the predictions are fused
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mtmm_jax.batch import Spec, Tokens
from mtmm_jax.fusion.groups import grouped_tokens
from mtmm_jax.keys import fold_in_name
from mtmm_jax.model.parameters import flatten

STAGES = ("early", "early_raw", "middle", "middle_shared", "late", "decision")
# How far the encoders run before fusion, by stage.
LEVELS = {
    "early": "stem",
    "early_raw": "stem",
    "middle": "first",
    "middle_shared": "first",
    "late": "second",
    "decision": "second",
}


class ForwardPass:
    """Applies modules by path over one plain tree of variables.

    Keys come from the path's name, never from the order of calls.

    Args:
        variables: `{collection: {path ...: leaf}}`.
        key: the root of all keys; None where nothing is drawn.
        train, axis_name: given to every module.
        init: whether modules without parameters get some.
    """

    def __init__(
        self,
        variables: Mapping[str, Any],
        key: jax.Array | None = None,
        *,
        train: bool = False,
        axis_name: str | None = None,
        init: bool = False,
    ) -> None:
        self.variables: dict[str, Any] = dict(variables)
        self.updates: dict[str, Any] = {}
        self.mode = {"train": train, "axis_name": axis_name}
        self._key, self._init = key, init

    def key(self, path: str) -> jax.Array:
        return fold_in_name(self._key, path)

    def variables_at(self, path: str) -> dict[str, Any]:
        """The variables of the module at `path`, by collection, as far as they are known."""
        keys = path.split("/")
        trees = {**self.variables, "batch_stats": self.variables.get("batch_stats", {})}
        found = {name: _get(tree, keys) for name, tree in trees.items()}
        moved = _get(self.updates.get("batch_stats", {}), keys)
        if moved is not None:  # another part of the same module ran before
            found["batch_stats"] = moved
        return {name: value for name, value in found.items() if value is not None}

    def __call__(
        self,
        path: str,
        module: nn.Module,
        *args: Any,
        method: str = "__call__",
        record: bool = True,
    ) -> Any:
        """The output of the module at `path`.

        Args:
            path: of its parameters.
            module: the module.
            *args: what it is called with, besides the mode.
            method: one of its methods; its parts may be run one after the other.
            record: whether its statistics and intermediates are kept; not for a second run over
                the same batch, which would move the statistics twice.
        """
        keys = tuple(path.split("/"))
        if self._init:
            # A part that ran before under the same path drew its own; all from one key by name.
            output, variables = module.init_with_output(
                {"params": self.key(path)}, *args, **self.mode, method=method
            )
            for collection in ("params", "batch_stats"):
                _put(self.variables.setdefault(collection, {}), keys, variables.get(collection, {}))
            return output
        rngs = {} if self._key is None else {"dropout": self.key(path)}
        mutable = ["intermediates", "losses", *(["batch_stats"] if self.mode["train"] else [])]
        output, updates = module.apply(
            self.variables_at(path), *args, **self.mode, rngs=rngs, mutable=mutable, method=method
        )
        for collection, value in updates.items() if record else ():
            _put(self.updates.setdefault(collection, {}), keys, value)
        return output

    def auxiliary_losses(self) -> dict[str, tuple[jax.Array, jax.Array]]:
        """Path -> `(sum, count)` of the losses that modules handed over (`layers.auxiliary`)."""
        return {
            path if i == 0 else f"{path}_{i + 1}": term
            for path, terms in flatten(self.updates.get("losses", {})).items()
            for i, term in enumerate(terms)
        }


def _get(tree: Mapping[str, Any], keys: Iterable[str]) -> Any:
    for key in keys:
        if key not in tree:
            return None
        tree = tree[key]
    return tree


def _put(tree: dict[str, Any], keys: tuple[str, ...], value: Any) -> None:
    """Sets `value` at a path; a dict joins the dict that is there."""
    if isinstance(value, Mapping):
        for key, entry in value.items():
            _put(tree, (*keys, key), entry)
        return
    for key in keys[:-1]:
        tree = tree.setdefault(key, {})
    tree[keys[-1]] = value


class EncoderCache:
    """The encoders' outputs of one pass: each part runs once, and only if its output is read.

    Args:
        forward: the pass.
        encoders: modality -> encoder.
        inputs: cleaned, of the modalities that the batch has.
        spec: the data's, for the shapes of a modality that the batch lacks.
        adapters: modality -> module that its encoder's final tokens pass.
        halves_fused: whether fusion runs the second halves, on other tokens than their own.
            Statistics then move there, and once.
    """

    def __init__(
        self,
        forward: ForwardPass,
        encoders: Mapping[str, nn.Module],
        inputs: Mapping[str, Any],
        spec: Spec,
        adapters: Mapping[str, nn.Module] | None = None,
        halves_fused: bool = False,
    ) -> None:
        self._forward, self._encoders, self._inputs = forward, encoders, inputs
        self._spec, self._adapters = spec, adapters or {}
        self._tokens: dict[tuple[str, str], Tokens] = {}
        self._halves_fused, self._moved = halves_fused, set()

    def tokens(self, name: str, level: str) -> Tokens:
        """A modality's tokens after its "stem", its "first" half or its "second"."""
        if (name, level) in self._tokens:
            return self._tokens[name, level]
        path, encoder, method, record = f"encoders/{name}", self._encoders[name], level, True
        if name not in self._inputs:
            found = self._absent(name, level)
        else:
            if level == "stem":
                given = self._inputs[name]
            elif level == "first":
                given = self.tokens(name, "stem")
            elif (name, "stem") in self._tokens:
                given, record = self.tokens(name, "first"), not self._halves_fused
            else:
                given, method = self._inputs[name], "__call__"
            found = self._forward(path, encoder, given, method=method, record=record).zero_masked()
        if level == "second" and name in self._adapters:
            found = self._forward(f"adapters/{name}", self._adapters[name], found)
        self._tokens[name, level] = found
        return found

    def second_half(self, name: str, tokens: Tokens, stand_ins: bool = False) -> Tokens:
        """A modality's second half on other tokens than its own."""
        if name not in self._inputs and not stand_ins:
            return self._absent(name, "second")
        record = name not in self._moved
        self._moved.add(name)
        encoder = self._encoders[name]
        found = self._forward(f"encoders/{name}", encoder, tokens, method="second", record=record)
        return found.zero_masked()

    def _absent(self, name: str, level: str) -> Tokens:
        """Zeros for a modality that the batch lacks: its encoder is not run, only traced."""
        encoder = self._encoders[name]
        variables = self._forward.variables_at(f"encoders/{name}")
        rows = next(iter(self._inputs.values()))["present"].shape[0]
        parts = ("stem", "first", "second")

        def trace(tokens: Any) -> Tokens:
            for part in parts[: parts.index(level) + 1]:
                tokens = encoder.apply(variables, tokens, method=part)
            return tokens

        shapes = jax.eval_shape(trace, self._spec.example(rows)["inputs"][name])
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


@dataclasses.dataclass(frozen=True, eq=False)
class FusionStage:
    """One fusion of some modalities at some stage.

    Attributes:
        stage: one of `STAGES`.
        fusion: dict of `Tokens` -> `Tokens`.
        second: the other fusion of stage middle.
        into: of stage middle, for each modality: brings h1 to the tokens that its half reads.
        trunk: of the stages early and middle_shared.
        tokens: the most tokens that a modality gives before its second half; neighbours are
            put together where it would give more.
        missing: what stands in for absent modalities; None: nothing.
        align: brings the modalities to common positions first; None: they stay where they are.
    """

    stage: str
    fusion: nn.Module
    second: nn.Module | None = None
    into: Mapping[str, nn.Module] = dataclasses.field(default_factory=dict)
    trunk: nn.Module | None = None
    tokens: int = 64
    missing: nn.Module | None = None
    align: nn.Module | None = None

    def __call__(
        self,
        forward: ForwardPass,
        path: str,
        seen: Mapping[str, Tokens],
        known: Mapping[str, Tokens],
        second_half: Callable[[str, Tokens, bool], Tokens],
    ) -> Tokens:
        """Fuses the encoders' tokens of the level that this stage needs.

        Args:
            forward: the pass.
            path: of this fusion's parameters.
            seen: the tokens by modality, without those that modality dropout hides.
            known: with them.
            second_half: runs a modality's second half, on stand-ins too if its flag is set.
        """
        parts = dict(seen)
        if self.missing is not None:
            parts = forward(f"{path}/missing", self.missing, parts, dict(known))
        if self.align is not None:
            parts = forward(f"{path}/align", self.align, parts)
        if self.stage == "late":
            return forward(path, self.fusion, parts)
        grouped = {name: grouped_tokens(part, self.tokens) for name, part in parts.items()}
        if self.stage != "middle":
            fused = forward(f"{path}/{LEVELS[self.stage]}", self.fusion, grouped)
            return forward(f"{path}/trunk", self.trunk, fused)
        middle = forward(f"{path}/first", self.fusion, grouped)
        later = {}
        for name, part in parts.items():
            # A second half continues on its own grid; the fused tokens come to it.
            read = forward(f"{path}/into/{name}", self.into[name], middle, grouped[name], part)
            later[name] = second_half(name, read.zero_masked(), self.missing is not None)
        return forward(f"{path}/second", self.second, later)

    @property
    def modules(self) -> tuple[nn.Module | None, ...]:
        return self.fusion, self.second, self.trunk, self.missing, self.align, *self.into.values()
