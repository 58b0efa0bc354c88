"""Prepared data sets, kept as NPZ and JSON: arrays, texts, numbers, and no code.

    made-<digest>.npz     the arrays: equal ones of a list stacked, others end to end
    made-<digest>.json    {"tree", "npz": SHA-256 of the NPZ, "sha256" of the rest}

A tree is made of dicts, lists, tuples, texts, bytes, numbers and arrays. A list of dicts with the
same keys is kept by columns.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mtmm_jax.store import files


def save(tree: Any, path: Path) -> None:
    """Writes a tree, the index last.

    Args:
        tree: of dicts, lists and so on.
        path: of both files, without a suffix.
    """
    arrays: dict[str, np.ndarray] = {}
    described = _describe(tree, arrays)
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    data = buffer.getvalue()
    files.write(path.with_suffix(".npz"), data)
    index = {"tree": described, "npz": hashlib.sha256(data).hexdigest()}
    files.write(path.with_suffix(".json"), files.sealed(index))


def load(path: Path) -> Any:
    """The tree that `save` wrote; `files.Damaged` where a byte of it is another."""
    index = path.with_suffix(".json")
    found, _ = files.unsealed(files.read_bytes(index), index)
    place = path.with_suffix(".npz")
    data = files.read_bytes(place)
    if hashlib.sha256(data).hexdigest() != found.get("npz"):
        raise files.damaged(place, "is not what was written: it has another SHA-256")
    with files.understood(index):
        return _restore(found["tree"], files.npz(data, place))


def _keep(array: np.ndarray, arrays: dict[str, np.ndarray]) -> str:
    if array.dtype.hasobject:
        raise TypeError(f"an array of {array.dtype} cannot be kept")
    name = f"a{len(arrays)}"
    arrays[name] = array
    return name


def _describe(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    """JSON of a value; its arrays are put into `arrays`."""
    if isinstance(value, np.ndarray):
        return {"array": _keep(value, arrays)}
    if isinstance(value, np.generic):
        return {"scalar": _keep(np.asarray(value), arrays)}
    if isinstance(value, bytes):
        return {"bytes": _keep(np.frombuffer(value, np.uint8), arrays)}
    if isinstance(value, Mapping):
        return {"dict": {key: _describe(entry, arrays) for key, entry in value.items()}}
    if isinstance(value, list | tuple):
        return {"tuple" if isinstance(value, tuple) else "list": _several(list(value), arrays)}
    if value is None or isinstance(value, str | int | float | bool):
        return {"plain": value}
    raise TypeError(f"{type(value).__name__} cannot be kept")


def _several(values: list[Any], arrays: dict[str, np.ndarray]) -> Any:
    kinds = {type(value) for value in values}
    if kinds <= {str, int, float, bool, type(None)}:
        return {"plain": values}
    if kinds == {dict} and len({tuple(value) for value in values}) == 1:
        columns = {key: _several([value[key] for value in values], arrays) for key in values[0]}
        return {"columns": columns, "rows": len(values)}
    if kinds == {bytes}:
        return {"joined": _several([np.frombuffer(v, np.uint8) for v in values], arrays)}
    if all(isinstance(value, np.generic) for value in values) and len(kinds) == 1:
        return {"scalars": _keep(np.array(values), arrays)}
    if kinds == {np.ndarray} and len({value.dtype for value in values}) == 1:
        if len({value.shape for value in values}) == 1:
            return {"stacked": _keep(np.stack(values), arrays)}
        if all(value.ndim for value in values) and len({v.shape[1:] for v in values}) == 1:
            lengths = np.array([len(value) for value in values], np.int64)
            whole = _keep(np.concatenate(values), arrays)
            return {"ragged": whole, "lengths": _keep(lengths, arrays)}
    return {"each": [_describe(value, arrays) for value in values]}


def _restore(described: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Any:
    ((kind, value),) = described.items()
    if kind == "plain":
        return value
    if kind == "dict":
        return {key: _restore(entry, arrays) for key, entry in value.items()}
    if kind in ("list", "tuple"):
        return (list if kind == "list" else tuple)(_values(value, arrays))
    array = arrays[value]
    if kind == "bytes":
        return array.tobytes()
    return array[()] if kind == "scalar" else array


def _values(described: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Sequence[Any]:
    if "plain" in described:
        return described["plain"]
    if "each" in described:
        return [_restore(entry, arrays) for entry in described["each"]]
    if "columns" in described:
        columns = {key: _values(part, arrays) for key, part in described["columns"].items()}
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    if "joined" in described:
        return [value.tobytes() for value in _values(described["joined"], arrays)]
    if "ragged" in described:
        stops = np.cumsum(arrays[described["lengths"]])[:-1]
        return np.split(arrays[described["ragged"]], stops)
    return list(arrays[described["stacked" if "stacked" in described else "scalars"]])
