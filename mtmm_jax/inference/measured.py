"""Tables and series of a finished run's user: numbers brought into the form that training saw.

Standardised, spread over columns and cut by what the run kept of its data, in `assets/`.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mtmm_jax.batch import Modality
from mtmm_jax.data.pipeline.pipes import Pipe
from mtmm_jax.data.sources.manifest.files import check_path
from mtmm_jax.data.sources.manifest.setting import Input, Setting
from mtmm_jax.readers.cells import Attempt, class_name, number
from mtmm_jax.readers.limits import Unreadable
from mtmm_jax.store.workdir import Workdir


def table(name: str, modality: Modality, setting: Setting, workdir: Workdir) -> Input | None:
    """Standardised and spread over columns as in training; None where no row has any of it."""
    where, rows = f"--manifest: {name}", setting.rows
    learnt = _asset(workdir, f"{name}_columns.json")
    if learnt is None and name in rows.columns:
        listed = setting.cells(name, where, lambda value: _vector(value, modality))
        nothing = [None] * len(modality.names or range(modality.shape[0]))
        cells = dict(enumerate(zip(*(nothing if v is None else v for v in listed), strict=True)))
    else:
        columns = dict.fromkeys(learnt or modality.names)
        if not columns.keys() & rows.columns:
            return None
        cells = {}
        for column in columns:
            parse = _category if learnt and "categories" in learnt[column] else number
            here = column in rows.columns
            cells[column] = setting.cells(column, where, parse) if here else [None] * len(rows)
    if learnt is not None:
        parts = [_learnt(cells[column], about) for column, about in learnt.items()]
        x, mask = (np.concatenate(part, axis=1) for part in zip(*parts, strict=True))
    else:
        x, mask = _plain(name, modality, list(cells.values()), workdir)

    def batch(chosen: np.ndarray, chance: Any, attempt: Attempt) -> Any:
        known = mask[chosen]
        return {"x": x[chosen], "mask": known, "present": known.any(1)}, []

    return Input(modality, batch)


def _learnt(cells: list[Any], about: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """A column by what a manifest's run learnt of it; a category that it did not meet is masked."""
    if "mean" in about:
        values = np.array([np.nan if cell is None else cell for cell in cells], np.float64)[:, None]
        known = ~np.isnan(values)
        x = np.where(known, (values - about["mean"]) / about["std"], 0)
        return x.astype(np.float32), known
    at = {category: i for i, category in enumerate(about["categories"])}
    x = np.zeros((len(cells), len(at)), np.float32)
    mask = np.zeros(x.shape, bool)
    for row, value in enumerate(cells):
        if value in at:
            x[row, at[value]], mask[row] = 1, True
    return x, mask


def _plain(
    name: str, modality: Modality, cells: list[Any], workdir: Workdir
) -> tuple[np.ndarray, np.ndarray]:
    """Numbers by column, in the units that the source had them in."""
    values = np.array([[np.nan if v is None else v for v in column] for column in cells]).T
    names = list(modality.names)
    for i, column in enumerate(names):
        unknown = f"{column}_missing"  # a source that says what it does not know
        if unknown in names and np.isnan(values[:, names.index(unknown)]).all():
            gap = np.isnan(values[:, i])
            values[:, names.index(unknown)] = gap
            mean, _ = _scale(workdir, name, modality)
            values[gap, i] = mean[i]
    known = ~np.isnan(values)
    pipe = (_asset(workdir, "pipes.json") or {}).get(name)
    if pipe is None:
        mean, std = _scale(workdir, name, modality)
        return np.where(known, (values - mean) / std, 0).astype(np.float32), known
    found = Pipe.from_dict(pipe).entry([np.nan_to_num(v).astype(np.float32) for v in values], None)
    return np.where(known, found["x"], 0).astype(np.float32), known


def series(name: str, modality: Modality, setting: Setting, workdir: Workdir) -> Input:
    """Steps, standardised, cut or filled up to the length of training."""
    length, channels = modality.shape
    mean, std = _scale(workdir, name, modality)
    pipe = (_asset(workdir, "pipes.json") or {}).get(name)
    cells = setting.cells(name, f"--manifest: {name}", lambda value: value)

    def decode(value: Any, _: int) -> np.ndarray:
        if isinstance(value, str) and not value.lstrip().startswith("["):
            found = steps_of(value, setting.folder.read(check_path(value)), modality)
        else:
            found = _steps(json.loads(value) if isinstance(value, str) else value, modality)
        if pipe is None:
            return (found - mean) / std
        entry = Pipe.from_dict(pipe).entry([found.astype(np.float32)], None)
        return entry["x"][0][: int(entry["mask"][0].sum())] if "mask" in entry else entry["x"][0]

    def batch(rows: np.ndarray, chance: Any, attempt: Attempt) -> Any:
        x = np.zeros((len(rows), length, channels), np.float32)
        mask = np.zeros((len(rows), length), bool)
        for i, found in enumerate(attempt(name, cells, _readable(decode))):
            if found is not None:
                x[i, : len(found)], mask[i, : len(found)] = found[:length], True
        return {"x": x, "mask": mask, "present": mask.any(1)}, []

    return Input(modality, batch)


def _readable(decode: Callable[[Any, int], np.ndarray]) -> Callable[[Any, int], np.ndarray]:
    def read(value: Any, i: int) -> np.ndarray:
        try:
            return decode(value, i)
        except ValueError as error:
            raise Unreadable(f"is no series: {error}") from error

    return read


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


def _vector(value: Any, modality: Modality) -> list[float | None]:
    size = modality.shape[0]
    if not isinstance(value, list) or len(value) != size:
        raise Unreadable(f"is no list of {size} numbers")
    return [None if v is None else number(v) for v in value]


def _category(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else class_name(value)


def _scale(workdir: Workdir, name: str, modality: Modality) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of each column or channel, as the source kept them; 0 and 1 if it did not.

    Sources keep them as `<modality>.json` or `<kind>.json`, or for several tables `tables.json`.
    """
    size = modality.shape[-1]
    mean, std = np.zeros(size), np.ones(size)
    for file in (f"{name}.json", f"{modality.kind}.json", f"{modality.kind}s.json"):
        found = _asset(workdir, file)
        if not isinstance(found, dict):
            continue
        found = found.get(name, found)
        if "mean" in found:
            return np.asarray(found["mean"], np.float64), np.asarray(found["std"], np.float64)
        for column, about in found.get("scale", {}).items():
            at = modality.names.index(column)
            mean[at], std[at] = about["mean"], about["std"]
        return mean, std
    return mean, std


def _asset(workdir: Workdir, name: str) -> Any:
    path = workdir.path / "assets" / name
    return json.loads(path.read_text()) if path.exists() else None
