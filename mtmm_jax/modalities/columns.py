"""Inputs from a manifest's columns, in training and with a finished run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from mtmm_jax.modalities.modality import Modality
from mtmm_jax.ranges import Size
from mtmm_jax.readers.arrays import ARRAYS, decode_array, read_cell
from mtmm_jax.readers.cells import Attempt, Setting
from mtmm_jax.readers.files import check_path
from mtmm_jax.readers.limits import Unreadable
from mtmm_jax.readers.own import own_bytes, read_own
from mtmm_jax.registry import ConfigError


@dataclasses.dataclass(frozen=True)
class Input:
    """A modality that is ready to be read.

    Attributes:
        modality: for the spec.
        batch: `(rows, chance [B, draws] or None, attempt)` -> its entry in the batch, and what was
            decoded (of pictures, for the boxes in them).
        draws: how many random numbers an example takes.
        assets: files that prediction needs.
    """

    modality: Modality
    batch: Callable[[np.ndarray, np.ndarray | None, Attempt], tuple[dict[str, Any], list[Any]]]
    draws: int = 0
    assets: Mapping[str, bytes] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Kept:
    """Statistics of one modality that a finished run keeps.

    Attributes:
        name: of the modality.
        modality: as the run's spec has it.
        options: of the modality in the run's own manifest; only its `kind` for other data.
        asset: the name of a JSON file -> what it holds, None where the run has no such file.
        tokenizer: gives the `tokenizer.json` of a text.
        pipe: None, or `[values] -> entry`, the run's own pipe.
    """

    name: str
    modality: Modality
    options: Mapping[str, Any]
    asset: Callable[[str], Any]
    tokenizer: Callable[[], str | bytes]
    pipe: Callable[[Sequence[Any]], dict[str, Any]] | None = None

    @property
    def column(self) -> str:
        return self.options.get("column") or self.name


@dataclasses.dataclass(frozen=True, kw_only=True)
class Column:
    """The options of a modality that is read off one column.

    Attributes:
        own: name of the modality, after which the column is called by default.
        where: the place in the config.
        column: name of the column.
    """

    own: str
    where: str
    column: str | None = None

    pictured: ClassVar[bool] = False  # whether boxes can lie in what it decodes
    tokenized: ClassVar[bool] = False  # whether it has `texts`, and `fit` needs their tokenizer

    @property
    def at(self) -> str:
        return self.column or self.own

    def parse(self, setting: Setting) -> list[Any]:
        return setting.cells(self.at, self.where, check_path)

    def fit(self, cells: list[Any], setting: Setting, train: np.ndarray, tokenizer: str) -> Input:
        raise NotImplementedError

    def describe(self, cell: Any) -> str:
        """A cell in a few words, if it describes the example."""
        del cell
        return ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArrayColumn(Column):
    """Arrays of one shape, each a `.npy` file or a JSON list.

    Args:
        kind, dimensions: of the modality.
        masked: whether arrays are cut or filled up along their first axis, with a mask.
        shape: of each; by default that of the first one in the train split.
    """

    kind: str
    dimensions: int
    masked: bool = False
    shape: Sequence[Size] | None = None

    def __post_init__(self) -> None:
        if self.shape is not None and len(self.shape) != self.dimensions:
            raise ConfigError(
                f"{self.where}.shape: {self.shape!r} is not a list of {self.dimensions} sizes"
            )

    def parse(self, setting: Setting) -> list[Any]:
        return setting.cells(self.at, self.where, read_cell)

    def fit(self, cells: list[Any], setting: Setting, train: np.ndarray, tokenizer: str) -> Input:
        shape = tuple(self.shape or self._first_shape(cells, setting, train))

        def decode(value: Any, _: int) -> np.ndarray:
            found = _array(value, setting)
            free = 1 if self.masked else 0
            if found.ndim != len(shape) or found.shape[free:] != shape[free:]:
                raise Unreadable(f"is an array of shape {list(found.shape)}; wanted {list(shape)}")
            return found

        def batch(rows: np.ndarray, chance: Any, attempt: Attempt) -> Any:
            x, mask = filled(attempt(self.at, cells, decode), shape)
            entry = {"x": x, "mask": mask} if self.masked else {"x": x}
            return {**entry, "present": mask.any(1)}, []

        return Input(Modality(self.kind, shape, "float32"), batch)

    def _first_shape(
        self, cells: list[Any], setting: Setting, train: np.ndarray
    ) -> tuple[int, ...]:
        setting.some(self.at, cells, train)
        for row in train.tolist():
            try:
                found = None if cells[row] is None else _array(cells[row], setting)
            except Unreadable as error:
                setting.bad.row(row, self.at, cells[row], error)
                continue
            if found is not None and found.ndim == self.dimensions and found.size:
                return found.shape
        reason = f"has no array of {self.dimensions} dimensions in the train split"
        setting.bad.structure(None, self.at, None, reason, "bad value")
        return (1,) * self.dimensions


def _array(value: Any, setting: Setting) -> np.ndarray:
    return value if isinstance(value, np.ndarray) else decode_array(setting.folder.read(value))


def array_options(modality: Modality, given: Mapping[str, Any]) -> dict[str, Any]:
    del given
    return {"shape": list(modality.shape)}


def array_row(value: str, kept: Kept) -> dict[str, Any]:
    """A row of a manifest with the array of a `.npy` file, or of a JSON list."""
    if value.lstrip().startswith("["):
        return {kept.column: read_cell(value).tolist()}
    decode = lambda where: decode_array(own_bytes(where))  # noqa: E731
    return {kept.column: read_own(value, kept.name, ARRAYS, decode).tolist()}


def filled(found: Sequence[np.ndarray | None], shape: tuple[int, ...]) -> tuple[Any, Any]:
    """Arrays cut or filled up to `shape` along their first axis, and their mask; None is empty."""
    x = np.zeros((len(found), *shape), np.float32)
    mask = np.zeros((len(found), shape[0]), bool)
    for i, one in enumerate(found):
        if one is not None:
            x[i, : len(one)], mask[i, : len(one)] = one[: shape[0]], True
    return x, mask


def present(decoded: Sequence[Any]) -> np.ndarray:
    return np.array([value is not None for value in decoded], bool)


def one_present(x: np.ndarray) -> dict[str, Any]:
    """An entry of a batch of one."""
    return {"x": x, "present": np.ones(1, bool)}
