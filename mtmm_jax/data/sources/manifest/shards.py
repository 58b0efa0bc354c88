"""Shards of decoded files: arrays end to end in one file, and a JSON index with their SHA-256.

    <name>.bin     arrays, each at a multiple of 64 bytes
    <name>.json    {"version", "sha256" of the .bin, "records": {file: ...}, "index_sha256"}

A shard is there once its index is: both are written under other names and renamed, the index last.
Shards are read through a memory map and not array_record, which took longer for a picture of 12 kB
(`benchmarks/results/decoding.json`), does not hold shapes, and has no digest of a file.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mtmm_jax.store import digests
from mtmm_jax.store.files import write

VERSION = 1
"""Of the format and of the decoders: grows when either gives other bytes."""
_ALIGN = 64
_DTYPES = (
    *("bool", "uint8", "uint16", "int8", "int16", "int32", "int64"),
    *("float32", "float64"),
)


class Damaged(ValueError):
    """The error of a shard that cannot be used."""


@dataclasses.dataclass(frozen=True)
class Record:
    """One decoded file, or why it cannot be decoded.

    Attributes:
        file: size and time of change in nanoseconds, when it was decoded.
        meta: what JSON holds of the value.
        dtype, shape, offset: of its array.
        reason, about: of a file that is `Unreadable`; empty for others.
        stored: whether there is an array, or a reason; else the file is decoded in every epoch.
    """

    file: tuple[int, int]
    meta: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    dtype: str = "uint8"
    shape: tuple[int, ...] = (0,)
    offset: int = 0
    reason: str = ""
    about: str = ""
    stored: bool = True

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclasses.dataclass(frozen=True)
class Shard:
    """A shard that is open.

    Attributes:
        index: path of the JSON.
        records: name of a file -> its record.
        data: all bytes, a read-only memory map.
    """

    index: Path
    records: Mapping[str, Record]
    data: np.ndarray

    def array(self, record: Record) -> np.ndarray:
        whole = self.data[record.offset : record.offset + record.bytes]
        return whole.view(record.dtype).reshape(record.shape)

    def delete(self) -> None:
        delete(self.index)


def delete(index: Path) -> None:
    index.unlink(missing_ok=True)
    index.with_suffix(".bin").unlink(missing_ok=True)


def write_shard(
    folder: Path,
    records: Mapping[str, Record],
    arrays: Sequence[np.ndarray | None],
    stem: str | None = None,
) -> Shard:
    """Writes a shard and opens it.

    Args:
        folder: of the shards.
        records: in the order of their arrays; dtype, shape and offset are filled in here.
        arrays: None for a file that cannot be decoded.
        stem: name of the shard; drawn at random by default.
    """
    data, placed = bytearray(), {}
    for (name, record), array in zip(records.items(), arrays, strict=True):
        if array is None:
            placed[name] = record
            continue
        placed[name] = dataclasses.replace(
            record, dtype=array.dtype.name, shape=array.shape, offset=len(data)
        )
        data += np.ascontiguousarray(array).tobytes()
        data += bytes(-len(data) % _ALIGN)
    body = {
        "version": VERSION,
        "sha256": hashlib.sha256(data).hexdigest(),
        "records": {name: dataclasses.asdict(record) for name, record in placed.items()},
    }
    index = folder / f"{stem or secrets.token_hex(8)}.json"
    write(index.with_suffix(".bin"), bytes(data))
    write(index, json.dumps({**body, "index_sha256": _digest(body)}).encode())
    return Shard(index, placed, _map(index))


def open_shard(index: Path) -> Shard:
    """A shard whose every byte is what was written; `Damaged` otherwise."""
    records = read_index(index, whole=True)
    return Shard(index, records, _map(index))


def read_index(index: Path, whole: bool = False) -> dict[str, Record]:
    """The records of a shard, `Damaged` where its index is; its bytes are looked at if `whole`."""
    try:
        body = json.loads(index.read_bytes())
        written = body.pop("index_sha256")
        if _digest(body) != written:
            raise Damaged("its index is not what was written")
        if body["version"] != VERSION:
            raise Damaged(f"it has version {body['version']}, not {VERSION}")
        data = index.with_suffix(".bin")
        if whole and digests.of_file(data) != body["sha256"]:
            raise Damaged("its bytes are not what was written")
        size = data.stat().st_size
        return {name: _record(fields, size) for name, fields in body["records"].items()}
    except Damaged:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise Damaged(f"it cannot be read: {reason}") from error


def _record(fields: Mapping[str, Any], size: int) -> Record:
    record = Record(**{**fields, "file": tuple(fields["file"]), "shape": tuple(fields["shape"])})
    inside = record.offset >= 0 and record.offset + record.bytes <= size
    if record.dtype not in _DTYPES or not inside or min(record.shape, default=0) < 0:
        raise Damaged("a record lies outside of it")
    return record


def _map(index: Path) -> np.ndarray:
    path = index.with_suffix(".bin")
    if not path.stat().st_size:  # of nothing there is no map
        return np.zeros(0, np.uint8)
    return np.memmap(path, np.uint8, "r").view(np.ndarray)


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
