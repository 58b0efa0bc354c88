"""The rows of a table: JSONL, CSV, TSV, Parquet, a folder, or columns in memory.

A line that cannot be read is kept as such, with its reason.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from mtmm_jax.data.sources.manifest import formats
from mtmm_jax.readers.limits import Limits, Unreadable
from mtmm_jax.registry import ConfigError, choose


@dataclasses.dataclass(frozen=True)
class Rows:
    """A manifest in memory.

    Attributes:
        path: of the manifest, for messages.
        values: of each row: column -> value. What is absent is `None` or has no key.
        lines: on which line of the file each row begins, from 1.
        columns: that at least one row has.
        broken: `(line, reason)` of what is no row.
        root: the folder in which the files lie that rows name; the manifest's by default.
    """

    path: Path
    values: list[dict[str, Any]]
    lines: list[int]
    columns: frozenset[str]
    broken: list[tuple[int, str]] = dataclasses.field(default_factory=list)
    root: Path | None = None

    @property
    def base(self) -> Path:
        """The folder in which the files lie."""
        return self.path.parent if self.root is None else self.root

    def __len__(self) -> int:
        return len(self.values)

    def column(self, name: str, where: str) -> list[Any]:
        """Of every row, `None` where it is absent."""
        choose(name, self.columns, where, f"column of {self.path}")
        return [row.get(name) for row in self.values]


def read_rows(table: str | os.PathLike[str] | Any, limits: Limits) -> Rows:
    """The rows of a table.

    Args:
        table: the path of a `.jsonl`, a `.csv` or `.tsv` with a header (UTF-8, the delimiter is
            found), a `.parquet`, a folder of `class/file` or `split/class/file`, a folder with
            `metadata.csv` or `metadata.jsonl` (column `file_name`); or columns in memory: a dict
            of lists or a data frame.
        limits: what is refused for its size.
    """
    if not isinstance(table, str | os.PathLike):
        return _in_memory(table)
    path = Path(table)
    if path.is_dir():
        return _folder(path, limits)
    if not path.is_file():
        raise ConfigError(f"manifest: {path} does not exist, or is no file")
    values, lines, broken = [], [], []
    for line, row in entries_of(path, limits):
        if isinstance(row, str):
            broken.append((line, row))
        else:
            values.append(row)
            lines.append(line)
    return Rows(path, values, lines, _columns(values), broken)


def entries_of(path: Path, limits: Limits) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """`(line, row)` of a file of rows, one after the other; a text says why a line is no row."""
    read = _FORMATS[choose(path.suffix.lower(), _FORMATS, f"manifest {path}", "kind of manifest")]
    try:
        with path.open("rb") as file:
            yield from read(file, limits)
    except ConfigError as error:
        raise ConfigError(f"manifest {path}: {error}") from error


def _columns(values: list[dict[str, Any]]) -> frozenset[str]:
    return frozenset(key for row in values for key in row)


def _in_memory(table: Any) -> Rows:
    values = formats.rows_of_columns(table)
    lines = list(range(1, len(values) + 1))
    return Rows(Path("table"), values, lines, _columns(values), root=Path("."))


def _folder(root: Path, limits: Limits) -> Rows:
    """One row a file, or the rows of the metadata files in the folder or in those of its splits."""
    values: list[dict[str, Any]] = []
    broken: list[tuple[int, str]] = []
    found = formats.metadata_files(root)
    for file, below, split in found:
        rows = read_rows(file, limits)
        values += [formats.placed(row, below, split) for row in rows.values]
        broken += rows.broken
    if not found:
        values = formats.files_by_class(root)
    lines = rows.lines if len(found) == 1 else list(range(1, len(values) + 1))
    path = found[0][0] if len(found) == 1 else root
    return Rows(path, values, lines, _columns(values), broken, root)


def _lines(file: BinaryIO, limit: int) -> Iterator[tuple[int, bytes | None]]:
    """`(number, line)` from 1, None for a line that is too long; a byte order mark is dropped."""
    number = 0
    while line := file.readline(limit + 1):
        number += 1
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if len(line) <= limit:
            yield number, line
            continue
        while line and not line.endswith(b"\n"):
            line = file.readline(limit)
        yield number, None


def _jsonl(file: BinaryIO, limits: Limits) -> Iterator[tuple[int, dict[str, Any] | str]]:
    too_long = f"is longer than the limit of {limits.row_bytes:,} bytes"
    for number, line in _lines(file, limits.row_bytes):
        if line is None:
            yield number, too_long
        elif line.strip():
            yield number, _or_error(_object, line)


def _object(line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise Unreadable(f"is not UTF-8 at byte {error.start}") from error
    except RecursionError as error:
        raise Unreadable("is nested too deeply") from error
    except ValueError as error:
        raise Unreadable(f"is not JSON: {error}") from error
    if not isinstance(row, dict):
        raise Unreadable(f"is JSON, but no object: {str(row)[:60]}")
    if b"\\ud" in line.lower():  # half of an escaped pair is no character
        _encodes(json.dumps(row, ensure_ascii=False))
    return row


def _csv(file: BinaryIO, limits: Limits) -> Iterator[tuple[int, dict[str, Any] | str]]:
    too_long: list[int] = []

    def text() -> Iterator[str]:
        for number, line in _lines(file, limits.row_bytes):
            if line is None:
                too_long.append(number)
            yield "\n" if line is None else line.decode(errors="surrogateescape")

    reader = csv.reader(text(), strict=True, delimiter=_delimiter(file))
    try:
        header = next(reader, None)
    except csv.Error as error:
        raise ConfigError(f"its header cannot be read: {error}") from error
    if not header or too_long:
        raise ConfigError("it has no header")
    if len(set(header)) < len(header) or not all(header):
        raise ConfigError(f"its header has empty or repeated names: {header}")
    while True:
        start = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            yield start, f"is not CSV: {error}"
            continue
        if too_long:
            yield too_long.pop(), f"is longer than the limit of {limits.row_bytes:,} bytes"
        elif cells is None:
            return
        elif cells:
            yield start, _or_error(_record, header, cells)


def _delimiter(file: BinaryIO) -> str:
    """The one that makes the most columns of the header; a comma where none makes several."""
    start = file.tell()
    sample = file.read(2**16).removeprefix(b"\xef\xbb\xbf").decode(errors="replace")
    file.seek(start)

    def width(delimiter: str) -> int:
        try:
            return len(next(csv.reader(io.StringIO(sample), delimiter=delimiter), ()))
        except csv.Error:
            return 0

    return max(_DELIMITERS, key=width)


def _parquet(file: BinaryIO, limits: Limits) -> Iterator[tuple[int, dict[str, Any] | str]]:
    del limits
    yield from enumerate(formats.rows_of_parquet(file), 1)


def _record(header: list[str], cells: list[str]) -> dict[str, Any]:
    if len(cells) != len(header):
        raise Unreadable(f"has {len(cells)} cells, and the header {len(header)}")
    _encodes("".join(cells))
    return {name: cell if cell else None for name, cell in zip(header, cells, strict=True)}


def _encodes(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise Unreadable("is not UTF-8, or has half of a character in it") from error


def _or_error(read: Callable[..., dict[str, Any]], *args: Any) -> dict[str, Any] | str:
    try:
        return read(*args)
    except Unreadable as error:
        return str(error)


_DELIMITERS = (",", ";", "\t", "|")
_FORMATS = {".jsonl": _jsonl, ".csv": _csv, ".tsv": _csv, ".parquet": _parquet}
