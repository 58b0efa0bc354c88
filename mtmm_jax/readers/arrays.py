"""Arrays of numbers, from the bytes of a `.npy` file or from nested lists of JSON."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np

from mtmm_jax.readers.files import check_path
from mtmm_jax.readers.limits import Unreadable, guard

ARRAYS = "a .npy file, or a JSON list of numbers"
NARROW = 64  # columns of a guessed series at most; a wider array of two dimensions is a picture


def read_cell(value: Any) -> str | np.ndarray:
    """The name of a `.npy` file, or the array that a list holds (in a CSV: its JSON)."""
    if isinstance(value, str) and not value.lstrip().startswith("["):
        name = check_path(value)
        if not name.lower().endswith(".npy"):
            raise Unreadable(f"is no array; accepted: {ARRAYS}")
        return name
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise Unreadable(f"is not JSON: {error}") from error
    if not isinstance(value, list):
        raise Unreadable(f"is no array; accepted: {ARRAYS}")
    return guard(_numbers, value)


def npy_header(data: bytes) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and dtype of a `.npy` file, from its header; raises anything for another file."""
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else None
    shape, _, dtype = (read or np.lib.format.read_array_header_2_0)(file)
    return shape, dtype


def npy_shape(data: bytes) -> tuple[int, ...]:
    """The shape in the header of a `.npy` file of numbers; empty for any other file."""
    try:
        shape, dtype = npy_header(data)
    except (ValueError, EOFError, SyntaxError, TypeError):
        return ()
    return shape if dtype.kind in "biuf" else ()


def decode_array(data: bytes) -> np.ndarray:
    """The float32 array of a `.npy` file."""
    return guard(lambda: _numbers(np.load(io.BytesIO(data), allow_pickle=False)))


def _numbers(value: Any) -> np.ndarray:
    try:
        found = np.asarray(value)
    except ValueError as error:
        raise Unreadable("has lists of different lengths") from error
    if found.dtype.kind not in "biuf":
        raise Unreadable("has something that is not a number among its numbers")
    with np.errstate(over="ignore"):
        found = found.astype(np.float32)
    if not np.isfinite(found).all():
        raise Unreadable("has not-a-number or infinity among its numbers")
    return found
