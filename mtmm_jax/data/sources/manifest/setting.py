"""The context in which modalities and targets of a manifest are built."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mtmm_jax.data.sources.manifest.bad import BadRows
from mtmm_jax.data.sources.manifest.decoded import Decoded
from mtmm_jax.data.sources.manifest.rows import Rows
from mtmm_jax.readers.decoder import Decoder
from mtmm_jax.readers.files import Folder
from mtmm_jax.readers.limits import Limits, Unreadable
from mtmm_jax.registry import ConfigError


@dataclasses.dataclass(frozen=True)
class Setting:
    """A manifest that is being turned into a source."""

    rows: Rows
    folder: Folder
    limits: Limits
    bad: BadRows
    decoded: Decoded | None = None

    def cells(self, column: str, where: str, parse: Callable[[Any], Any]) -> list[Any]:
        """A column, each value parsed; `None` where it is absent or its row is bad."""
        out = []
        for row, value in enumerate(self.raw(column, where)):
            try:
                out.append(None if value is None else parse(value))
            except Unreadable as error:
                self.bad.row(row, column, value, error)
                out.append(None)
        return out

    def raw(self, column: str, where: str) -> list[Any]:
        """A column as it stands in the manifest."""
        try:
            return self.rows.column(column, where)
        except ConfigError as error:
            if self.bad.on_bad != "collect":
                raise
            self.bad.structure(None, column, None, error, "no such column")
            return [None] * len(self.rows)

    def once(self, column: str, cells: Sequence[Any], decoder: Decoder) -> Callable[[str], Any]:
        """name of a file -> its value, from `decoded` where there is such."""
        if self.decoded is None:
            return decoder.now
        return self.decoded.once(column, cells, decoder)

    def some(self, column: str, cells: Sequence[Any], train: np.ndarray) -> list[Any]:
        """The values of the train split, of which there must be one."""
        values = [cells[row] for row in train if cells[row] is not None]
        if not values:
            self.bad.structure(
                None, column, None, "has no value in the train split", "empty column"
            )
        return values
