"""Tables row by row, in bounded memory: JSONL, CSV, Parquet by row groups, tars, folders.

What a cell holds as bytes is handed over as a name, as if it were a file; a chunk keeps the bytes
of its rows, and `HeldFolder` reads them by that name.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from mtmm_jax.data.sources.manifest.formats import SPLIT_NAMES, holds_bytes, plain
from mtmm_jax.data.sources.manifest.rows import Rows, entries_of, read_rows
from mtmm_jax.data.sources.sharded import tars
from mtmm_jax.readers.files import Folder
from mtmm_jax.readers.limits import Limits, Unreadable
from mtmm_jax.registry import ConfigError

Entry = tuple[int, dict[str, Any] | str | None]
"""A line and its row; why it is none; or None for a row that is not wanted."""
Wanted = Callable[[int], bool]
SKIPPED = tars.SKIPPED
_BATCH = 256  # rows of Parquet in memory as Python values
_SAMPLE = 2**16  # bytes of each end of a table that its digest covers


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Some rows of a table, one after the other.

    Attributes:
        first: the place of the first in the table.
        lines: of each.
        values: of each: its columns, or why it is no row.
        held: name -> what a cell held as bytes.
    """

    first: int
    lines: list[int]
    values: list[dict[str, Any] | str]
    held: dict[str, bytes]

    def __len__(self) -> int:
        return len(self.values)

    def rows(self, path: Path, columns: frozenset[str]) -> Rows:
        """The rows as a manifest has them; those that are none are empty."""
        values = [{} if isinstance(row, str) else row for row in self.values]
        return Rows(path, values, self.lines, columns)


@dataclasses.dataclass(frozen=True)
class Stream:
    """A table whose rows come one after the other.

    Attributes:
        path: of the table.
        root: the folder in which files lie that rows name.
        limits: what is refused for its size.
        files: of the table, in order, and the split that all rows of each belong to.
        total: rows, where the files say it.
        rows: those of a folder of files, which are few bytes each, instead of `files`.
    """

    path: Path
    root: Path
    limits: Limits
    files: tuple[tuple[Path, str | None], ...]
    total: int | None = None
    rows: Rows | None = None

    def entries(
        self, wanted: Wanted = lambda place: True, without: Collection[str] = ()
    ) -> Iterator[Entry]:
        """Every entry in order; those that are not wanted are skipped as cheaply as can be.

        Args:
            wanted: place of a row -> whether it is.
            without: columns whose bytes are not read; their cells are `SKIPPED`.
        """
        if self.rows is not None:
            for line, row in zip(self.rows.lines, self.rows.values, strict=True):
                yield line, dict(row)
            return
        before = 0
        for file, split in self.files:
            place = before
            here = lambda i, before=before: wanted(before + i)  # noqa: E731
            for line, row in _READERS[_kind(file)](file, self.limits, here, without):
                if split is not None and isinstance(row, dict):
                    row.setdefault("split", split)
                place += 1
                yield (line if len(self.files) == 1 else place), row
            before = place

    def chunks(self, size: int, wanted: Wanted = lambda chunk: True) -> Iterator[Chunk]:
        """The wanted ones of the chunks of `size` rows."""
        entries = enumerate(self.entries(lambda place: wanted(place // size)))
        for number in itertools.count():
            part = list(itertools.islice(entries, size)) if wanted(number) else None
            if part is None:
                if not _skip(entries, size):
                    return
                continue
            if not part:
                return
            yield chunk_of(part)
            if len(part) < size:
                return

    def digest(self) -> str:
        """Of the names and sizes of the table's files, and of both ends of each."""
        found = hashlib.sha256()
        if self.rows is not None:
            for row in self.rows.values:
                found.update(repr(sorted(row.items())).encode())
        for file, _ in self.files:
            size = file.stat().st_size
            found.update(f"{file.name} {size}\n".encode())
            with file.open("rb") as data:
                found.update(data.read(_SAMPLE))
                data.seek(max(0, size - _SAMPLE))
                found.update(data.read(_SAMPLE))
        return found.hexdigest()


def _skip(entries: Iterator[Any], count: int) -> bool:
    """Goes past `count` of them; whether there was one."""
    return sum(1 for _ in itertools.islice(entries, count)) > 0


def chunk_of(part: Collection[tuple[int, Entry]]) -> Chunk:
    """`(place, (line, row))` of one row or more; bytes become names."""
    held: dict[str, bytes] = {}
    values = []
    for place, (_, row) in part:
        values.append("was skipped" if row is None else _named(row, place, held))
    return Chunk(min(place for place, _ in part), [line for _, (line, _) in part], values, held)


def _named(row: dict[str, Any] | str, place: int, held: dict[str, bytes]) -> dict[str, Any] | str:
    if isinstance(row, str):
        return row
    for number, (column, value) in enumerate(row.items()):
        suffix = ""
        if isinstance(value, Mapping) and isinstance(value.get("bytes"), bytes):
            path = value.get("path")
            suffix = _ending(path) if isinstance(path, str) else ""
            value = value["bytes"]
        elif isinstance(value, tars.Member):
            suffix, value = value.ending, value.data
        if isinstance(value, bytes):
            name = f"<bytes of row {place}, column {number}>{suffix}"
            row[column], held[name] = name, value
    return row


def is_held(value: Any) -> bool:
    """Whether a cell names bytes that the table itself holds."""
    return isinstance(value, str) and value.startswith("<bytes of row ")


def _ending(path: str) -> str:
    found = re.search(r"\.\w{1,8}$", path)
    return found[0].lower() if found else ""


class HeldFolder(Folder):
    """A folder, and what cells of a table held as bytes."""

    def __init__(self, root: str | os.PathLike[str], limits: Limits) -> None:
        super().__init__(root, limits)
        self.held: Mapping[str, bytes] = {}

    def read(self, name: str, limit: str = "file_bytes") -> bytes:
        data = self.held.get(name)
        if data is None:
            if is_held(name):
                raise Unreadable("is not at hand", "missing")
            return super().read(name, limit)
        self._limits.check(limit, len(data), "bytes")
        return data

    def is_folder(self, name: str) -> bool:
        return not is_held(name) and super().is_folder(name)

    def stat(self, name: str) -> tuple[int, int]:
        if is_held(name):
            return len(self.held.get(name, b"")), 0
        return super().stat(name)


def open_stream(table: str | os.PathLike[str], limits: Limits) -> Stream:
    """A table that `check` reads, a tar or Parquet file, or a folder of such files."""
    path = Path(table)
    if not path.exists():
        raise ConfigError(f"table: {path} does not exist")
    if path.is_dir():
        found = sorted(file for file in path.iterdir() if file.is_file() and _is_shard(file))
        if not found:
            rows = read_rows(path, limits)
            return Stream(path, rows.base, limits, (), len(rows), rows)
        files = tuple((file, _split_of(file)) for file in found)
        if any(split is None for _, split in files):
            files = tuple((file, None) for file in found)
        root = path
    else:
        if not (_is_shard(path) or path.suffix.lower() in _TEXTS):
            choices = ", ".join((*_TEXTS, ".parquet", *tars.ENDINGS))
            raise ConfigError(f"table: {path} has an unknown ending; choices: {choices}")
        files, root = ((path, None),), path.parent
    kinds = {_kind(file) for file, _ in files}
    total = sum(_parquet_rows(file) for file, _ in files) if kinds == {"parquet"} else None
    return Stream(path, root, limits, files, total)


def _is_shard(file: Path) -> bool:
    return _kind(file) != "text" and not file.name.startswith(".")


def _kind(file: Path) -> str:
    name = file.name.lower()
    if name.endswith(tars.ENDINGS):
        return "tar"
    return "parquet" if name.endswith(".parquet") else "text"


def _split_of(file: Path) -> str | None:
    return SPLIT_NAMES.get(re.split(r"[-_.]", file.name.lower())[0])


def _texts(path: Path, limits: Limits, wanted: Wanted, without: Collection[str]) -> Iterator[Entry]:
    del without  # a text holds no bytes
    for place, (line, row) in enumerate(entries_of(path, limits)):
        yield line, row if wanted(place) else None


def _tar(path: Path, limits: Limits, wanted: Wanted, without: Collection[str]) -> Iterator[Entry]:
    yield from enumerate(tars.samples(path, limits, wanted, without), 1)


def _parquet_rows(path: Path) -> int:
    with _opened(path) as file:
        return file.metadata.num_rows


def _parquet(
    path: Path, limits: Limits, wanted: Wanted, without: Collection[str]
) -> Iterator[Entry]:
    """By row groups, of which those without a wanted row are not read, a few rows at a time."""
    import pyarrow

    with _opened(path) as file:
        bytes_in = {field.name for field in file.schema_arrow if holds_bytes(field.type)}
        skipped = dict.fromkeys(bytes_in & set(without), SKIPPED)
        names = file.schema_arrow.names
        read = [name for name in names if name not in skipped]
        place = 0
        try:
            for group in range(file.num_row_groups):
                count = file.metadata.row_group(group).num_rows
                if not any(map(wanted, range(place, place + count))):
                    for _ in range(count):
                        place += 1
                        yield place, None
                    continue
                for batch in file.iter_batches(_BATCH, [group], read, use_threads=False):
                    here = [wanted(place + i) for i in range(batch.num_rows)]
                    for want, row in _rows(batch, here, bytes_in):
                        place += 1
                        yield (
                            place,
                            {n: skipped.get(n, row.get(n)) for n in names} if want else None,
                        )
        except (pyarrow.ArrowException, OSError) as error:
            raise _broken(path, error) from error


def _rows(batch: Any, wanted: list[bool], bytes_in: set[str]) -> Iterator[tuple[bool, Any]]:
    if not any(wanted):
        yield from ((False, None) for _ in wanted)
        return
    for want, row in zip(wanted, batch.to_pylist(), strict=True):
        yield want, {k: v if k in bytes_in else plain(v) for k, v in row.items()}


def _opened(path: Path) -> Any:
    import pyarrow
    import pyarrow.parquet

    try:  # read through a small buffer: a row group may hold all rows there are
        return pyarrow.parquet.ParquetFile(path, buffer_size=2**20, pre_buffer=False)
    except (pyarrow.ArrowException, OSError) as error:
        raise _broken(path, error) from error


def _broken(path: Path, error: Exception) -> ConfigError:
    return ConfigError(f"table {path}: cannot be read as Parquet: {' '.join(str(error).split())}")


_TEXTS = (".csv", ".tsv", ".jsonl")
_READERS: dict[str, Callable[[Path, Limits, Wanted, Collection[str]], Iterator[Entry]]] = {
    "text": _texts,
    "tar": _tar,
    "parquet": _parquet,
}
