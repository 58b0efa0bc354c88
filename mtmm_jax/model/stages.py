"""Where fusion happens: on the stems' tokens, between two halves, on the bodies' outputs.

early          h = trunk(fuse(stem_1(x_1), .., stem_M(x_M)))
early_raw      the same, each x_m flattened and projected instead of encoded
middle         h1 = fuse1(first_m(x_m));  h = fuse2(second_m(h1))
middle_shared  h = trunk(fuse(first_m(x_m)))
late           h = fuse(second_m(first_m(stem_m(x_m))))
decision       no features are fused: every modality predicts, and the predictions are fused
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mtmm_jax.batch import Tokens
from mtmm_jax.fusion.groups import grouped_tokens, silent
from mtmm_jax.layers import Run

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


@dataclasses.dataclass(frozen=True, eq=False)
class Fusing:
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
        run: Run,
        path: str,
        seen: Mapping[str, Tokens],
        known: Mapping[str, Tokens],
        second_half: Callable[[str, Tokens, bool], Tokens],
    ) -> Tokens:
        """Fuses what the encoders gave as far as this stage needs them.

        Args:
            run: the pass.
            path: of this fusion's parameters.
            seen: the tokens by modality, without those that modality dropout hides.
            known: with them.
            second_half: runs a modality's second half, on stand-ins too if it is told of some.
        """
        parts = dict(seen)
        if self.missing is not None:
            parts = run(f"{path}/missing", self.missing, parts, dict(known))
        if self.align is not None:
            parts = run(f"{path}/align", self.align, parts)
        if self.stage == "late":
            return run(path, self.fusion, parts)
        if self.stage == "middle":
            grouped = {name: grouped_tokens(part, self.tokens) for name, part in parts.items()}
            middle = run(f"{path}/first", self.fusion, grouped)
            later = {}
            for name, part in parts.items():
                # Its grid is what a second half goes on with; the fused tokens come to it.
                read = run(f"{path}/into/{name}", self.into[name], middle, grouped[name], part)
                later[name] = second_half(name, silent(read), self.missing is not None)
            return run(f"{path}/second", self.second, later)
        grouped = {name: grouped_tokens(part, self.tokens) for name, part in parts.items()}
        fused = run(f"{path}/{LEVELS[self.stage]}", self.fusion, grouped)
        return run(f"{path}/trunk", self.trunk, fused)


class Levels:
    """The encoders' outputs of one pass, each part run once and only if somebody reads it.

    Args:
        run: the pass.
        encoders: modality -> encoder.
        inputs: cleaned, of the modalities that the batch has.
        example: gives a modality's inputs where the batch has none; for their shapes only.
        halves_fused: whether fusion runs the second halves, on other tokens than their own.
            Statistics then move there, and once.
    """

    def __init__(
        self,
        run: Run,
        encoders: Mapping[str, nn.Module],
        inputs: Mapping[str, Any],
        example: Callable[[str, int], Any],
        halves_fused: bool = False,
    ) -> None:
        self._run, self._encoders, self._inputs, self._example = run, encoders, inputs, example
        self._known: dict[tuple[str, str], Tokens] = {}
        self._halves_fused, self._moved = halves_fused, set()

    def get(self, name: str, level: str) -> Tokens:
        """A modality's tokens after its stem, its first half or its second."""
        if (name, level) not in self._known:
            self._known[name, level] = self._compute(name, level)
        return self._known[name, level]

    def second(self, name: str, tokens: Tokens, stand_ins: bool = False) -> Tokens:
        """A modality's second half on other tokens than its own."""
        if name not in self._inputs and not stand_ins:
            shapes = self._shapes(name, "second")
            return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        record = name not in self._moved
        self._moved.add(name)
        return silent(self._apply(name, "second", tokens, record=record))

    def _compute(self, name: str, level: str) -> Tokens:
        if name not in self._inputs:
            # Absent from the whole batch: its encoder is not run, and no row of it is there.
            shapes = self._shapes(name, level)
            return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        if level == "stem":
            return silent(self._apply(name, "stem", self._inputs[name]))
        if level == "first":
            return silent(self._apply(name, "first", self.get(name, "stem")))
        if (name, "stem") not in self._known:
            return silent(self._apply(name, "__call__", self._inputs[name]))
        record = not self._halves_fused
        return silent(self._apply(name, "second", self.get(name, "first"), record=record))

    def _apply(self, name: str, method: str, *args: Any, record: bool = True) -> Tokens:
        path = f"encoders/{name}"
        return self._run(path, self._encoders[name], *args, method=method, record=record)

    def _shapes(self, name: str, level: str) -> Any:
        encoder, own = self._encoders[name], self._run.own(f"encoders/{name}")
        rows = next(iter(self._inputs.values()))["present"].shape[0]
        entry = self._example(name, rows)

        def through() -> Tokens:
            tokens = encoder.apply(own, entry, method="stem")
            for part in ("first", "second"):
                if level == "stem" or (part == "second" and level == "first"):
                    break
                tokens = encoder.apply(own, tokens, method=part)
            return tokens

        return jax.eval_shape(through)
