"""Packed rows as a source: read from shards by place, whole or in part, nothing held in memory."""

from __future__ import annotations

import collections
import dataclasses
import json
import os
import threading
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mtmm_jax.batch import Batch
from mtmm_jax.data.pipeline.source import SPLITS, Source
from mtmm_jax.data.sources.manifest.compose import picture_of
from mtmm_jax.data.sources.manifest.shards import Damaged, Record, read_index
from mtmm_jax.data.sources.sharded.frozen import Unpacking, attempt_on, inputs_of
from mtmm_jax.data.sources.sharded.layout import Decoded, Layout
from mtmm_jax.data.sources.sharded.plan import Plan, read_header
from mtmm_jax.modalities import Input
from mtmm_jax.ranges import Natural, Threads
from mtmm_jax.registry import ConfigError, check

_OPEN = 256  # shards whose files are open at once
COLUMNS = "columns.json"
"""The asset that says from which columns a finished run reads its inputs."""


def packed(
    path: str | os.PathLike[str],
    *,
    augment: bool = True,
    seed: Natural = 0,
    workers: Threads = 1,
) -> Source:
    """Examples from the shards that `python -m mtmm_jax.data.pack TABLE --out PATH` wrote.

    Splits, labels, vocabularies and scales are those of the packing; rows that could not be used
    are in no split. A row is read by its place, with two reads of a file; each host reads the rows
    of its part of the batch and no others. A row that is not what was written is an error.

    Costs two reads of a file a row. Use it: for tables with more rows than memory holds, and on
    several hosts. Not: for a few thousand rows (`manifest`).

    Args:
        path: the folder of the shards, on a disk or a mounted bucket.
        augment: whether training takes other moments of clips and recordings than evaluation.
        seed: of shuffling and augmentation.
        workers: threads that make batches.
    """
    out = Path(check(os.fspath(path), str, "data.path")).expanduser()
    header = read_header(out)
    plan = Plan(header, np.zeros(0, np.int8), {})
    shards = Shards.open(out, plan)
    part = shards.parts()
    rows = {name: np.flatnonzero(part == i) for i, name in enumerate(SPLITS)}
    if not len(rows["train"]):
        raise ConfigError(f"data.path: {out} has no rows for training")
    inputs = inputs_of(plan, Unpacking.of(plan), list(plan.layout.decoded))
    compose = PackedRows(shards, inputs, tuple(plan.spec.modalities), tuple(plan.spec.targets))
    return Source(
        name="packed",
        spec=plan.spec,
        rows=rows,
        compose=compose,
        draws=sum(header["draws"].values()),
        assets={**plan.assets, COLUMNS: _columns(header)},
        describe=lambda id: shards.read(np.array([id])).words[0],
        picture=compose.picture,
        augment=augment,
        seed=seed,
        workers=workers,
    )


def _columns(header: Mapping[str, Any]) -> bytes:
    about = {key: header["description"].get(key) for key in ("modalities", "targets", "id")}
    return json.dumps({key: value for key, value in about.items() if value}, indent=1).encode()


@dataclasses.dataclass(frozen=True)
class Rows:
    """Some rows, read.

    Attributes:
        records: `[B]` of the layout's dtype.
        words: of each.
        files: of each: modality -> its decoded file.
    """

    records: np.ndarray
    words: list[str]
    files: list[dict[str, Decoded]]


class _File:
    """An open file, closed when nobody reads it any more."""

    __slots__ = ("handle",)

    def __init__(self, path: Path) -> None:
        self.handle = -1
        self.handle = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))

    def read(self, size: int, at: int) -> bytes:
        found = os.pread(self.handle, size, at)
        while len(found) < size:
            more = os.pread(self.handle, size - len(found), at + len(found))
            if not more:
                raise Damaged("it is shorter than it was")
            found += more
        return found

    def __del__(self, close: Callable[[int], None] = os.close) -> None:  # `os` may be gone by then
        if self.handle >= 0:
            close(self.handle)


class Shards:
    """The shards of a pack; threads may read at the same time.

    Attributes:
        out: the folder.
        layout: of a row.
        size: rows of a shard, but for the last.
        places: `[shards, 3]`: where rows, splits and blobs begin in each.
        sums: of each shard, the CRC-32 of its splits; None in packs of earlier versions.
    """

    def __init__(
        self,
        out: Path,
        layout: Layout,
        size: int,
        total: int,
        places: np.ndarray,
        sums: Sequence[int | None],
    ):
        self.out, self.layout, self.size, self.total, self.places = out, layout, size, total, places
        self.sums = sums
        self._width = layout.dtype.itemsize
        self._dtype = layout.dtype
        self._files: collections.OrderedDict[int, _File] = collections.OrderedDict()
        self._lock = threading.Lock()

    @classmethod
    def open(cls, out: Path, plan: Plan) -> Shards:
        """Looks at each shard's index, not at its rows."""
        if missing := plan.missing(out):
            raise ConfigError(
                f"{out}: {len(missing):,} of {plan.shards:,} shards are not there, the first is "
                f"{plan.path(out, missing[0]).name}; pack the table again, or its other parts, to "
                "make those"
            )
        places, sums = np.zeros((plan.shards, 3), np.int64), []
        for number in range(plan.shards):
            records = _index(out, plan, number)
            places[number] = [records[key].offset for key in ("rows", "part", "blobs")]
            sums.append(records["part"].meta.get("crc"))
        return cls(out, plan.layout, plan.shard_rows, plan.rows, places, sums)

    def __len__(self) -> int:
        return len(self.places)

    def rows_in(self, shard: int) -> int:
        return min(self.size, self.total - shard * self.size)

    def parts(self) -> np.ndarray:
        """`[N]` int8: the place of each row's split in `SPLITS`, -1 for none."""
        return np.frombuffer(b"".join(self._part(shard) for shard in range(len(self))), np.int8)

    def _part(self, shard: int) -> bytes:
        try:
            found = self._file(shard).read(self.rows_in(shard), int(self.places[shard, 1]))
            if self.sums[shard] not in (None, zlib.crc32(found)):
                raise Damaged("the splits of its rows are not what was written")
        except (Damaged, OSError) as error:
            raise self._unreadable(shard, str(error)) from error
        return found

    def _unreadable(self, shard: int, why: str) -> ConfigError:
        name = self.out / f"rows-{shard:06d}"
        return ConfigError(
            f"{name}.bin: {why}; delete {name.name}.* and pack the table again, which makes what "
            "is missing"
        )

    def read(self, rows: np.ndarray) -> Rows:
        """Rows by their places in the table."""
        records, blobs = [], []
        for row in rows.tolist():
            record, blob = self._row(row)
            records.append(record)
            blobs.append(blob)
        found = np.frombuffer(b"".join(records), self._dtype)
        words = [
            blob[: int(record["words"])].decode(errors="replace")
            for record, blob in zip(found, blobs, strict=True)
        ]
        files = [self.layout.files(record, blob) for record, blob in zip(found, blobs, strict=True)]
        return Rows(found, words, files)

    def _row(self, row: int) -> tuple[bytes, bytes]:
        shard, place = divmod(row, self.size)
        try:
            file = self._file(shard)
            first, _, blobs = self.places[shard].tolist()
            record = file.read(self._width, first + place * self._width)
            about = np.frombuffer(record, self._dtype)[0]
            size, at = self.layout.blob_size(about), int(about["at"])
            if not (at >= 0 and 0 <= size < 2**40):
                raise Damaged("a row is not what was written")
            blob = file.read(size, blobs + at)
            self.layout.check(record, blob)
        except (Damaged, OSError, OverflowError, MemoryError) as error:
            raise self._unreadable(shard, f"row {place}: {error}") from error
        return record, blob

    def _file(self, shard: int) -> _File:
        with self._lock:
            file = self._files.pop(shard, None)
            if file is None:
                file = _File(self.out / f"rows-{shard:06d}.bin")
                if len(self._files) >= _OPEN:
                    self._files.popitem(last=False)
            self._files[shard] = file
            return file


def _index(out: Path, plan: Plan, number: int) -> dict[str, Record]:
    path = plan.path(out, number)
    try:
        records = read_index(path)
        rows = min(plan.shard_rows, plan.rows - number * plan.shard_rows)
        wanted = {"rows": (rows, plan.layout.dtype.itemsize), "part": (rows,)}
        if any(records[key].shape != shape for key, shape in wanted.items()):
            raise Damaged("it holds other rows than the packing planned")
        if "blobs" not in records:
            raise Damaged("it has no blobs")
    except (Damaged, KeyError) as error:
        raise ConfigError(
            f"{path}: {error}; delete {path.stem}.* and pack the table again, which makes what is "
            "missing"
        ) from error
    return records


@dataclasses.dataclass(frozen=True, eq=False)  # an identity: `labels.look` remembers by it
class PackedRows:
    """Places of rows -> a batch. What `Source.compose` is.

    Attributes:
        shards: that are read.
        inputs: modalities whose files were decoded.
        modalities, targets: all of them, in the spec's order.
    """

    shards: Shards
    inputs: Mapping[str, Input]
    modalities: Sequence[str]
    targets: Sequence[str]

    def __call__(self, rows: np.ndarray, chance: np.ndarray | None) -> Batch:
        found = self.shards.read(rows)
        inputs, at = {}, 0
        for name in self.modalities:
            one = self.inputs.get(name)
            if one is None:
                inputs[name] = _entry(found.records, f"inputs/{name}/")
                continue
            u = None if chance is None else chance[:, at : at + one.draws]
            inputs[name], _ = one.batch(rows, u, attempt_on(found.files, name))
            at += one.draws
        targets = {name: _target(found.records, name) for name in self.targets}
        return {"inputs": inputs, "targets": targets, "id": np.asarray(rows, np.int32)}

    @property
    def picture(self) -> Callable[[int], np.ndarray] | None:
        """As of `Source`."""
        return picture_of(_Shown(self.inputs, None, self.shards))


@dataclasses.dataclass(frozen=True)
class _Shown:
    """The view of inputs that read rows themselves, for `picture_of`."""

    decoded: Mapping[str, Input]
    bad: Any
    shards: Shards

    @property
    def inputs(self) -> dict[str, Input]:
        return {name: self._reading(name, one) for name, one in self.decoded.items()}

    def _reading(self, name: str, one: Input) -> Input:
        def batch(rows: np.ndarray, chance: Any, attempt: Any) -> Any:
            return one.batch(rows, chance, attempt_on(self.shards.read(rows).files, name))

        return dataclasses.replace(one, batch=batch)


def _entry(records: np.ndarray, prefix: str) -> dict[str, np.ndarray]:
    return {
        field.removeprefix(prefix): np.ascontiguousarray(records[field])
        for field in records.dtype.names
        if field.startswith(prefix)
    }


def _target(records: np.ndarray, name: str) -> dict[str, Any]:
    leaves = _entry(records, f"targets/{name}/")
    present = leaves.pop("present")
    nested = {leaf.removeprefix("y."): value for leaf, value in leaves.items()}
    return {"y": leaves.get("y", nested), "present": present}
