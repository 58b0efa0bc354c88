"""Series, `[T, channels]` of numbers with a mask where lengths vary."""

from __future__ import annotations

import collections
import csv
import dataclasses
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mtmm_jax.markup import plot
from mtmm_jax.modalities.columns import Column, Input, Kept, filled
from mtmm_jax.modalities.corruption import ABSENT, NOISE, fewer
from mtmm_jax.modalities.kind import ModalityKind
from mtmm_jax.modalities.modality import Modality
from mtmm_jax.modalities.scale import scale_of
from mtmm_jax.modalities.shown import Example, names_of
from mtmm_jax.ranges import Positive, Size
from mtmm_jax.readers.arrays import NARROW, npy_shape
from mtmm_jax.readers.cells import SMALLEST_STD, Attempt, Setting, number
from mtmm_jax.readers.files import check_path
from mtmm_jax.readers.limits import Unreadable
from mtmm_jax.registry import ConfigError

LONGEST = 512  # steps of a guessed one


@dataclasses.dataclass(frozen=True, kw_only=True)
class SeriesColumn(Column):
    """Steps of `channels` numbers, standardised by the train split, cut or filled up to `length`.

    A cell is a list of steps, or the name of a `.csv` or `.npy` file.

    Args:
        length: steps that the model sees.
        channels: numbers of a step; 1 by default, or as many as there are names.
        names: of the channels; a `.csv` with a header has its columns in any order.
        rate: steps per second.
    """

    length: Size = 64
    channels: Size = 1
    names: Sequence[str] = ()
    rate: Positive | None = None

    def __post_init__(self) -> None:
        if self.names and self.channels not in (1, len(self.names)):
            raise ConfigError(
                f"{self.where}.channels: {self.channels} are not the {len(self.names)} of `names`"
            )

    def parse(self, setting: Setting) -> list[Any]:
        return setting.cells(self.at, self.where, lambda value: value)

    def fit(self, cells: list[Any], setting: Setting, train: np.ndarray, tokenizer: str) -> Input:
        setting.some(self.at, cells, train)
        channels = len(self.names) or self.channels
        rate = None if self.rate is None else float(self.rate)
        shape, names = (self.length, channels), tuple(self.names)
        modality = Modality("series", shape, "float32", rate=rate, names=names)
        read = _readable(lambda value, _: _read(value, setting, modality))
        seen = []
        for row in train.tolist():
            try:
                if cells[row] is not None:
                    seen.append(read(cells[row], row))
            except Unreadable as error:
                setting.bad.row(row, self.at, cells[row], error)
        steps = np.concatenate(seen) if seen else np.zeros((1, channels))
        mean, std = steps.mean(0), steps.std(0)
        std = np.where(std > SMALLEST_STD, std, 1.0)

        def decode(value: Any, _: int) -> np.ndarray:
            return (_read(value, setting, modality) - mean) / std

        kept = json.dumps({"mean": mean.tolist(), "std": std.tolist()}, indent=1).encode()
        batch = _batches(self.at, cells, decode, self.length, channels)
        return Input(modality, batch, assets={f"{self.own}.json": kept})


def kept_series(kept: Kept, setting: Setting) -> Input | None:
    """Steps, standardised, cut or filled up to the length of training."""
    if kept.column not in setting.rows.columns:
        return None
    modality = kept.modality
    length, channels = modality.shape
    mean, std = scale_of(kept)
    cells = setting.cells(kept.column, f"--manifest: {kept.name}", lambda value: value)

    def decode(value: Any, _: int) -> np.ndarray:
        found = _read(value, setting, modality)
        if kept.pipe is None:
            return (found - mean) / std
        entry = kept.pipe([found.astype(np.float32)])
        return entry["x"][0][: int(entry["mask"][0].sum())] if "mask" in entry else entry["x"][0]

    return Input(modality, _batches(kept.column, cells, decode, length, channels))


def _read(value: Any, setting: Setting, modality: Modality) -> np.ndarray:
    """The steps of a cell: a list, its JSON, or the name of a file."""
    if isinstance(value, str) and not value.lstrip().startswith("["):
        return steps_of(value, setting.folder.read(check_path(value)), modality)
    return _steps(json.loads(value) if isinstance(value, str) else value, modality)


def _readable(decode: Callable[[Any, int], np.ndarray]) -> Callable[[Any, int], np.ndarray]:
    def read(value: Any, i: int) -> np.ndarray:
        try:
            return decode(value, i)
        except ValueError as error:
            raise Unreadable(f"is no series: {error}") from error

    return read


def _batches(
    column: str, cells: list[Any], decode: Callable[[Any, int], Any], length: int, channels: int
) -> Callable[[np.ndarray, Any, Attempt], Any]:
    """Batches of steps, cut or filled up to `length`."""

    def batch(rows: np.ndarray, chance: Any, attempt: Attempt) -> Any:
        x, mask = filled(attempt(column, cells, _readable(decode)), (length, channels))
        return {"x": x, "mask": mask, "present": mask.any(1)}, []

    return batch


def steps_of(name: str, data: bytes, modality: Modality) -> np.ndarray:
    """A series' file: `.npy`, or `.csv` with a line a step and, maybe, a header."""
    if name.lower().endswith(".npy"):
        return _steps(np.load(io.BytesIO(data), allow_pickle=False).tolist(), modality)
    if not name.lower().endswith(".csv"):
        raise Unreadable("is no series; accepted: .csv, .npy")
    lines = [line for line in csv.reader(io.StringIO(data.decode("utf-8-sig"))) if line]
    if lines and sorted(lines[0]) == sorted(modality.names):
        order = [lines[0].index(column) for column in modality.names]
        if any(len(line) != len(order) for line in lines):
            raise Unreadable("has lines of different lengths")
        lines = [[line[i] for i in order] for line in lines[1:]]
    return _steps(lines, modality)


def _steps(value: Any, modality: Modality) -> np.ndarray:
    """`[T, C]` float64 from a list of steps; of one channel also from a list of numbers."""
    channels = modality.shape[1]
    if not isinstance(value, list) or not value:
        raise Unreadable("is no list of steps")
    steps = [step if isinstance(step, list) else [step] for step in value]
    if any(len(step) != channels for step in steps):
        raise Unreadable(f"has a step that is not {channels} numbers")
    return np.array([[number(v) for v in step] for step in steps], np.float64)


def _row(value: str, kept: Kept) -> dict[str, Any]:
    file = Path(value).expanduser()
    return {kept.column: steps_of(file.name, file.read_bytes(), kept.modality).tolist()}


def guess(contents: Sequence[bytes]) -> dict[str, Any]:
    """The channels that most `.npy` files have, and the steps of the longest."""
    shapes = [shape for data in contents if len(shape := npy_shape(data)) == 2]
    if not shapes:
        return {}
    channels = collections.Counter(shape[1] for shape in shapes).most_common(1)[0][0]
    length = max(shape[0] for shape in shapes)
    return {"length": min(max(length, 1), LONGEST), "channels": channels}


def show(example: Example) -> str:
    steps = example.real
    return plot(steps, names_of(example.modality, steps.shape[1]))


SERIES = ModalityKind(
    "series",
    dimensions=2,
    mask="maybe",
    column=SeriesColumn,
    kept=kept_series,
    row=_row,
    encoder="series_gru",
    fixed="series_summary",
    claims=lambda data: len(shape := npy_shape(data)) == 2 and shape[1] <= NARROW,
    guess=guess,
    corruptions={"noise": NOISE, "missing steps": fewer("steps"), "absent": ABSENT},
    show=show,
    wide=True,
)
