"""Inputs as a plan learned them, for other rows: those of a chunk, or those of a shard."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mtmm_jax.data.sources.sharded.layout import Decoded
from mtmm_jax.data.sources.sharded.plan import Plan
from mtmm_jax.modalities import Input, Kept, kind_of
from mtmm_jax.readers.cells import Setting
from mtmm_jax.readers.decoder import Decoder
from mtmm_jax.readers.files import Folder
from mtmm_jax.readers.limits import LIMITS, Limits, Unreadable
from mtmm_jax.registry import entry_of
from mtmm_jax.text import tokenizer_of


def inputs_of(plan: Plan, setting: Setting, names: Sequence[str]) -> dict[str, Input]:
    """The inputs of those modalities, fitted to nothing but what the plan holds."""
    assets, spec = plan.assets, plan.spec

    def asset(name: str) -> Any:
        return json.loads(assets[name]) if name in assets else None

    found = {}
    for name in names:
        options = entry_of(plan.description["modalities"][name])
        modality = spec.modalities[name]
        tokenizer = lambda name=name: tokenizer_of(assets, name)  # noqa: E731
        kept = Kept(name, modality, options, asset, tokenizer)
        found[name] = kind_of(modality).input_of(kept, setting)
    return found


class Keeping:
    """Stands for a store of decoded files: keeps what a chunk's files decode to, packed."""

    def __init__(self) -> None:
        self.decoders: dict[str, Decoder] = {}
        self.files: list[tuple[str, Decoded]] = []

    def once(self, column: str, cells: Sequence[Any], decoder: Decoder) -> Callable[[str], Any]:
        def read(name: str) -> Any:
            value = decoder.decode(name)
            if value is None:
                raise Unreadable("is too large to be kept whole, or a part of it is broken")
            meta, array = decoder.pack(value)
            self.files.append((name, (meta, array)))
            return value

        return read


@dataclasses.dataclass(frozen=True)
class _NoRows:
    columns: frozenset[str]

    def __len__(self) -> int:
        return 0


@dataclasses.dataclass(frozen=True)
class Unpacking:
    """A `Setting` without rows, whose decoded files come from `Decoded` and not from names."""

    rows: Any
    folder: Folder
    limits: Limits = LIMITS
    bad: Any = None

    @classmethod
    def of(cls, plan: Plan) -> Unpacking:
        return cls(_NoRows(frozenset(plan.header["columns"])), Folder(".", LIMITS))

    def cells(self, column: str, where: str, parse: Callable[[Any], Any]) -> list[Any]:
        return []

    def some(self, column: str, cells: Sequence[Any], train: np.ndarray) -> list[Any]:
        return []

    def once(self, column: str, cells: Sequence[Any], decoder: Decoder) -> Callable[[Decoded], Any]:
        return lambda file: decoder.unpack(*file)


def attempt_on(
    files: Sequence[Mapping[str, Decoded]], name: str
) -> Callable[[str, Sequence[Any], Callable[[Any, int], Any]], list[Any]]:
    """An `Attempt` that gives the decoded files of a batch's rows, not the cells."""

    def attempt(column: str, cells: Any, decode: Callable[[Any, int], Any]) -> list[Any]:
        return [
            decode(of_row[name], i) if name in of_row else None for i, of_row in enumerate(files)
        ]

    return attempt
