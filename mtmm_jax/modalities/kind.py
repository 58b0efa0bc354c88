"""`ModalityKind`: all that depends on the kind of a modality; a row of `MODALITIES`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mtmm_jax.modalities.columns import (
    ArrayColumn,
    Input,
    Kept,
    array_options,
    array_row,
)
from mtmm_jax.modalities.corruption import ABSENT, NOISE, Corruption
from mtmm_jax.modalities.modality import Modality
from mtmm_jax.modalities.shown import Example, as_numbers
from mtmm_jax.modalities.units import Units
from mtmm_jax.readers.cells import Setting
from mtmm_jax.registry import build

STRETCHES_OF_AXIS = Units()
MASKS = ("never", "maybe", "always")


@dataclasses.dataclass(frozen=True)
class ModalityKind:
    """A kind of modality. A kind that sets only its dimensions is an array of numbers everywhere.

    Attributes:
        name: of its row.
        dimensions: of one example's `x`.
        like: kinds whose encoders, transforms and augmentations take this one too.
        mask: whether an example has a mask along its first axis: "never", "maybe" (examples of
            some sources have one, and exported programs take one) or "always".
        column: options of a manifest's column, a subclass of `columns.Column` or alike.
        options: `(modality, options of the run's own manifest) -> ` the options of `column` that
            read a column as a finished run's modality.
        kept: `(what a run kept, setting)` -> how a finished run reads columns, None where there are
            none; by default `column` with `options`.
        read: `(value on the command line, what a run kept)` -> a batch's entry of one example.
        row: instead of `read`: -> a row of a manifest, which is then read by `kept`.
        files: whether cells name files, which must stay in the manifest's folder.
        endings: of such files, for guessing what a column is.
        magic: how such files begin, a regex over bytes.
        claims: whether the bytes of a `.npy` file are such an array, from its shape.
        guess: the contents of some files -> options of a column whose kind was guessed by them.
        encoder: an entry of `ENCODERS` for a config that is written for such a column.
        fixed: an entry of `ENCODERS` without learned features, for linear models.
        units: what explanations name.
        corruptions: name -> damage.
        show: an example as HTML.
        wide: whether that needs more room than a picture.
        frames: `x -> [T, H, W, 3]` uint8, if it can be seen.
    """

    name: str
    dimensions: int
    like: tuple[str, ...] = ()
    mask: str = "never"
    column: Callable[..., Any] = ArrayColumn
    options: Callable[[Modality, Mapping[str, Any]], dict[str, Any]] = array_options
    kept: Callable[[Kept, Setting], Input | None] | None = None
    read: Callable[[str, Kept], dict[str, Any]] | None = None
    row: Callable[[str, Kept], dict[str, Any]] = array_row
    files: bool = True
    endings: tuple[str, ...] = ()
    magic: bytes = b""
    encoder: str = ""
    fixed: str = ""
    claims: Callable[[bytes], bool] = lambda data: False
    guess: Callable[[Sequence[bytes]], dict[str, Any]] = lambda contents: {}
    units: Units = STRETCHES_OF_AXIS
    corruptions: Mapping[str, Corruption] = dataclasses.field(
        default_factory=lambda: {"noise": NOISE, "absent": ABSENT}
    )
    show: Callable[[Example], str] = as_numbers
    wide: bool = False
    frames: Callable[[np.ndarray], np.ndarray] | None = None

    def input_of(self, kept: Kept, setting: Setting) -> Input | None:
        """Inputs of a manifest's columns for a finished run; None where no row has any of them."""
        if self.kept is not None:
            return self.kept(kept, setting)
        if kept.column not in setting.rows.columns:
            return None
        options = dict(kept.options)
        if "from" in options:
            options["origin"] = options.pop("from")
        options |= self.options(kept.modality, kept.options)
        column = build(
            {self.name: self.column},
            {**options, "kind": self.name},
            where=f"--manifest: {kept.name}",
            own=kept.name,
            **self.context,
        )
        cells, nobody = column.parse(setting), np.zeros(0, np.int64)
        return column.fit(
            cells, setting, nobody, _text(kept.tokenizer()) if column.tokenized else ""
        )

    @property
    def tokenized(self) -> bool:
        """Whether it is texts, in the ids of a tokenizer."""
        return getattr(self.column, "tokenized", False)

    @property
    def context(self) -> dict[str, Any]:
        """The optional arguments of `column` besides the config's options."""
        masked = self.mask != "never"
        return {"kind": self.name, "dimensions": self.dimensions, "masked": masked}


def _text(data: str | bytes) -> str:
    return data.decode() if isinstance(data, bytes) else data
