"""`check` of tables too large to hold: every row and file is read, and few are kept.

What columns mean is guessed from a sample of rows; present, missing and different values, classes,
splits, copies and repeated ids are counted over all rows.
"""

from __future__ import annotations

import array
import collections
import dataclasses
import hashlib
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from mtmm_jax.batch import Spec
from mtmm_jax.data.inspect.columns import ColumnLook, look_at_column, plain_key
from mtmm_jax.data.pipeline.source import SPLITS
from mtmm_jax.data.sources.manifest.bad import Problem
from mtmm_jax.data.sources.manifest.progress import progress, say
from mtmm_jax.data.sources.manifest.rows import Rows
from mtmm_jax.data.sources.sharded import tars
from mtmm_jax.data.sources.sharded.plan import Plan, Sample, make_plan
from mtmm_jax.data.sources.sharded.stream import Chunk, HeldFolder, Stream, is_held
from mtmm_jax.data.sources.sharded.write import Packed, pack_chunk
from mtmm_jax.devices.machine import cores
from mtmm_jax.modalities import MODALITIES
from mtmm_jax.registry import ConfigError, entry_of

LARGE_BYTES = 2**26  # of a file of rows
LARGE_ROWS = 50_000  # of a Parquet file
_SAMPLE = 2**15
_HEAD = 256  # rows whose bytes are looked at
_CLASSES = 10_000  # different values up to which they are counted
_KEPT = 10_000  # problems of rows that are kept in words


def is_large(path: Path) -> bool:
    """Whether a table is read as a stream: for its size, or for the bytes that it holds."""
    name = path.name.lower()
    if path.is_dir():
        parts = [file for file in path.iterdir() if file.is_file()]
        return any(file.name.lower().endswith((*tars.ENDINGS, ".parquet")) for file in parts) and (
            not any(file.stem == "metadata" for file in parts)
        )
    if not path.is_file():
        return False
    if name.endswith(".parquet"):
        return _is_large_parquet(path)
    return name.endswith(tars.ENDINGS) or path.stat().st_size > LARGE_BYTES


def _is_large_parquet(path: Path) -> bool:
    import pyarrow
    import pyarrow.parquet

    from mtmm_jax.data.sources.manifest.formats import holds_bytes

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            if file.metadata.num_rows > LARGE_ROWS:
                return True
            return any(holds_bytes(field.type) for field in file.schema_arrow)
    except (pyarrow.ArrowException, OSError):
        return False  # which the reader of tables says


class _Counts:
    """Statistics of all values of a column, in eight bytes a row."""

    def __init__(self) -> None:
        self.hashes = array.array("q")
        self.names: collections.Counter[Any] | None = collections.Counter()

    def add(self, value: Any) -> None:
        key = plain_key(value)
        self.hashes.append(hash(key))
        if self.names is not None:
            self.names[key] += 1
            if len(self.names) > _CLASSES:
                self.names = None

    @property
    def distinct(self) -> int:
        return len(np.unique(np.frombuffer(self.hashes, np.int64))) if self.hashes else 0


def look_at_stream(stream: Stream, labels: Collection[str]) -> tuple[Rows, list[ColumnLook]]:
    """A sample of the rows, and every column: guessed from the sample, counted over all rows."""
    head = next(stream.chunks(_HEAD), None)
    if head is None:
        raise ConfigError(f"table {stream.path}: has no rows")
    sample, counts, total = Sample(_SAMPLE), {}, 0
    held = _held_columns(head)
    with progress("looking", "looked at", "rows", stream.total) as advance:
        for place, (line, row) in enumerate(stream.entries(without=held)):
            total = place + 1
            if total % 1000 == 0:
                advance(total)
            if not isinstance(row, dict):
                continue
            for name, value in row.items():
                found = counts.get(name)
                if found is None:
                    found = counts[name] = _Counts()
                if value not in (None, "") and not isinstance(value, bytes | Mapping | tars.Member):
                    found.add(value)
            if sample.wants(place):
                sample.add(place, line, row, {})
    values = [row for _, _, row, _ in sample.rows]
    if len(values) < total:
        say(f"columns are guessed from {len(values):,} of {total:,} rows; all of them are counted")
    rows = Rows(stream.path, values, [line for _, line, _, _ in sample.rows], frozenset(counts),
                root=stream.root)  # fmt: skip
    for label in labels:
        rows.column(label, "--label")
    folder = HeldFolder(stream.root, stream.limits)
    folder.held = head.held
    first = head.rows(stream.path, frozenset(counts))
    return rows, [
        _counted(look_at_column(n, first if n in held else rows, folder, labels), counts[n], total)
        for n in counts
    ]


def _held_columns(chunk: Chunk) -> set[str]:
    return {
        name
        for row in chunk.values
        if isinstance(row, dict)
        for name, value in row.items()
        if is_held(value)
    }


def _counted(look: ColumnLook, counts: _Counts, total: int) -> ColumnLook:
    """With the counts of all rows."""
    present = len(counts.hashes)
    if is_held(next(iter(counts.names or ()), None)):
        if look.role != "modality" or not MODALITIES[look.kind].files:
            return dataclasses.replace(look, role="", kind="", why="bytes of no known kind")
        return dataclasses.replace(look, present=present, missing=total - present, distinct=present)
    classes = look.classes
    if classes and counts.names is not None:
        classes = {str(name): count for name, count in counts.names.items()}
    distinct = counts.distinct
    if look.role == "id" and distinct < present and look.distinct == look.present:
        look = dataclasses.replace(
            look, why=f"{look.why}; {present - distinct} of all rows have the value of another"
        )
    return dataclasses.replace(
        look, present=present, missing=total - present, distinct=distinct, classes=classes
    )


@dataclasses.dataclass(frozen=True)
class Streamed:
    """The content of a table as a report needs it.

    Attributes:
        rows: of the table.
        spec: of its inputs and labels.
        splits: rows that can be used in each.
        problems, doubts: as of `Report`.
        counts: column of files -> how many rows have one, fields of `ColumnLook`.
    """

    rows: int
    spec: Spec
    splits: dict[str, int]
    problems: list[Problem]
    doubts: list[Problem]
    counts: dict[str, dict[str, int]]


def check_stream(stream: Stream, description: Mapping[str, Any]) -> Streamed:
    """Reads every row and decodes every file, some at once, keeping numbers only."""
    with progress("reading", "read", "rows", stream.total) as advance:
        plan, bad = make_plan(stream, description, collect=True, progress=advance)
    columns = _compared(plan)
    copies = {name: _Copies(plan.rows) for name in columns}
    part = np.full(plan.rows, -1, np.int8)
    problems, dropped, present = bad.problems, 0, dict.fromkeys(copies, 0)
    with progress("checking", "checked", "rows", plan.rows) as advance:
        for chunk, packed in _decoded(plan, stream):
            here = slice(chunk.first, chunk.first + len(chunk))
            part[here] = packed.records["part"]
            room = max(0, _KEPT - len(problems))
            problems += packed.problems[:room]
            dropped += len(packed.problems[room:])
            for name, copy in copies.items():
                copy.add(chunk, packed, name, columns[name])
                present[name] += len(chunk) - _empty(chunk, name)
            advance(here.stop)
    doubts = bad.doubts
    for name, copy in copies.items():
        found = copy.repeated(part, name, stream.path, not columns[name])
        kind = columns[name] and entry_of(plan.description["modalities"][columns[name]])["kind"]
        if kind and not MODALITIES[kind].files:
            doubts += [dataclasses.replace(one, about="text in two splits") for one in found]
        else:
            problems += found
    if dropped:
        reason = f"{dropped:,} more rows cannot be used, which are not named"
        problems.append(Problem(str(stream.path), None, "", "", reason, "more"))
    sizes = {name: int((part == i).sum()) for i, name in enumerate(SPLITS)}
    for split in ("validation", "test"):
        if not sizes[split]:
            reason = f"has no row in {split}"
            doubts.append(Problem(str(stream.path), None, "", "", reason, "empty split"))
    counts = {
        name: {"present": here, "missing": plan.rows - here} for name, here in present.items()
    }
    return Streamed(plan.rows, plan.spec, sizes, problems, doubts, counts)


def _empty(chunk: Chunk, column: str) -> int:
    return sum(not isinstance(row, dict) or row.get(column) in (None, "") for row in chunk.values)


def _decoded(plan: Plan, stream: Stream) -> Iterator[tuple[Chunk, Packed]]:
    """Chunks and what became of them, in order, as many at once as there are cores."""
    waiting: collections.deque[tuple[Chunk, Future[Packed]]] = collections.deque()
    threads = len(cores())
    size = min(plan.shard_rows, 1024)
    with ThreadPoolExecutor(threads) as pool:
        for chunk in stream.chunks(size):
            folder = HeldFolder(stream.root, stream.limits)
            waiting.append((chunk, pool.submit(pack_chunk, plan, chunk, folder, stream.path)))
            if len(waiting) > threads:
                first, job = waiting.popleft()
                yield first, job.result()
        for first, job in waiting:
            yield first, job.result()


def _compared(plan: Plan) -> dict[str, str]:
    """The columns whose values must not be in two splits, and the modality that reads each."""
    entries = {n: entry_of(spec) for n, spec in plan.description["modalities"].items()}
    found = {entry.get("column") or name: name for name, entry in entries.items()}
    found.setdefault(plan.description.get("id", "id"), "")
    return {name: of for name, of in found.items() if name in plan.header["columns"]}


class _Copies:
    """A column's values as eight bytes each: files by their content, texts without case."""

    def __init__(self, rows: int) -> None:
        self.hashes = np.zeros(rows, np.int64)
        self.known = np.zeros(rows, bool)

    def add(self, chunk: Chunk, packed: Packed, column: str, modality: str) -> None:
        for i, row in enumerate(chunk.values):
            value = row.get(column) if isinstance(row, dict) else None
            if value in (None, ""):
                continue
            data = chunk.held.get(value) if isinstance(value, str) else None
            if data is None and modality in packed.files[i]:
                data = packed.files[i][modality][1].tobytes()
            elif data is None:
                data = " ".join(str(value).lower().split()).encode(errors="replace")
            digest = hashlib.blake2b(data, digest_size=8).digest()
            self.hashes[chunk.first + i] = int.from_bytes(digest, "little", signed=True)
            self.known[chunk.first + i] = True

    def repeated(self, part: np.ndarray, column: str, path: Path, id: bool) -> list[Problem]:
        """One problem for all values of a column that are in two splits; of ids, in two rows."""
        rows = np.flatnonzero(self.known & (part >= 0))
        order = rows[np.lexsort((part[rows], self.hashes[rows]))]
        pairs = self.hashes[order][1:] == self.hashes[order][:-1]
        if not id:
            pairs &= part[order][1:] != part[order][:-1]
        where = np.flatnonzero(pairs)
        if not len(where):
            return []
        first, second = int(order[where[0]]), int(order[where[0] + 1])
        count = "1 value is" if len(where) == 1 else f"{len(where):,} values are"
        what = "in two rows" if id else "in two splits"
        reason = f"{count} {what}, such as that of row {first + 1} in row {second + 1}"
        about = "repeated id" if id else "in two splits"
        return [Problem(str(path), None, column, "", reason, about)]
