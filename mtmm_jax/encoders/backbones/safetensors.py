"""Reads `.safetensors` files: 8 bytes of length, a JSON header, then the tensors' bytes."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from mtmm_jax.registry import ConfigError

_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": jnp.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


def read_safetensors(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Name -> array, read-only views of the file, which is mapped rather than read.

    Raises:
        ConfigError: if the file is not there or is not what its header says.
    """
    where = f"safetensors: {os.fspath(path)}"
    if not Path(path).is_file():
        raise ConfigError(f"{where}: there is no such file")
    if Path(path).stat().st_size < 8:
        raise ConfigError(f"{where}: is shorter than a header")
    data = np.memmap(path, np.uint8, mode="r")
    start = 8 + int(data[:8].view("<u8")[0])
    if start > len(data):
        raise ConfigError(f"{where}: the header would be longer than the file")
    try:
        header = json.loads(data[8:start].tobytes())
        header.pop("__metadata__", None)
        return {name: _tensor(data[start:], entry) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{where}: is not a safetensors file: {error}") from error


def _tensor(data: np.ndarray, entry: dict) -> np.ndarray:
    if entry["dtype"] not in _DTYPES:
        raise ValueError(f"dtype {entry['dtype']!r} is not among {', '.join(_DTYPES)}")
    dtype = np.dtype(_DTYPES[entry["dtype"]])
    begin, end = entry["data_offsets"]
    size = math.prod(entry["shape"]) * dtype.itemsize
    if not 0 <= begin <= end <= len(data) or end - begin != size:
        raise ValueError(f"a tensor of {size} bytes lies at {begin} to {end} of {len(data)}")
    # A copy of the bytes where they do not lie on the dtype's boundary.
    raw = data[begin:end]
    raw = raw if raw.ctypes.data % dtype.itemsize == 0 else raw.copy()
    return raw.view(dtype).reshape(entry["shape"])
