"""WebDataset tars: members of one name but for their endings are a row, an ending is a column."""

from __future__ import annotations

import json
import posixpath
import tarfile
import zlib
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mtmm_jax.modalities import MODALITIES
from mtmm_jax.readers.limits import Limits, Unreadable
from mtmm_jax.registry import ConfigError
from mtmm_jax.store.files import reason

ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_EXTENDED = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
_HEADER_BYTES = 2**20
_TEXTS = ("txt", "text", "caption", "transcript")
_VALUES = ("cls", "cls2", "index", "inx", "id")


SKIPPED = "<bytes of row that are not read>"
"""A cell whose bytes were not wanted."""


class Member(NamedTuple):
    """A file in a tar that is a cell."""

    data: bytes
    ending: str


def samples(
    path: Path, limits: Limits, wanted: Callable[[int], bool], without: Collection[str] = ()
) -> Iterator[dict[str, Any] | str | None]:
    """The rows of a tar in order, None for those that are not wanted; nothing is extracted.

    A member `a/b.left.jpg` belongs to the row `a/b`. Its column is `left`; that of `a/b.jpg` is
    called as the kind of such files, `image`. A `.json` object gives a column for each key, `.txt`
    the column `text`, and `.cls` the column `cls`. Column `id` is the row's name.
    """
    try:
        with tarfile.open(path, tarinfo=_Bounded) as tar:
            yield from _rows(tar, limits, wanted, without)
    except (tarfile.TarError, OSError, EOFError, zlib.error, ValueError) as error:
        raise ConfigError(f"table {path}: cannot be read as a tar: {reason(error)}") from error


class _Bounded(tarfile.TarInfo):
    """A member whose extended header, which `tarfile` reads whole, is of a sensible size."""

    def _proc_member(self, tar: tarfile.TarFile) -> Any:
        if self.type in _EXTENDED and self.size > _HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {self.size:,} bytes")
        return super()._proc_member(tar)


def _rows(
    tar: tarfile.TarFile,
    limits: Limits,
    wanted: Callable[[int], bool],
    without: Collection[str],
) -> Iterator[dict[str, Any] | str | None]:
    place, key, row, reason = -1, None, None, ""
    while (member := tar.next()) is not None:
        tar.members.clear()  # which would grow with the tar
        folder, base = posixpath.split(member.name)
        stem, dot, ending = base.partition(".")
        if not member.isreg() or not dot or not stem:
            continue
        name = posixpath.join(folder, stem)
        if name != key:
            if key is not None:
                yield reason or row
            place, key, reason = place + 1, name, ""
            row = {"id": name} if wanted(place) else None
        if row is None:
            continue
        if (column := _column(ending.lower())) in without:
            row[column] = SKIPPED
            continue
        try:
            limits.check("file_bytes", member.size, "bytes")
            file = tar.extractfile(member)
            row |= _cells(ending.lower(), b"" if file is None else file.read())
        except Unreadable as error:
            reason = f"file .{ending}: {error}"
    if key is not None:
        yield reason or row


def _cells(ending: str, data: bytes) -> dict[str, Any]:
    """The columns that one file is."""
    prefix, _, last = ending.rpartition(".")
    if last == "json":
        found = _parsed(data)
        if not isinstance(found, dict):
            return {prefix or "json": found}
        return {f"{prefix}.{key}" if prefix else key: value for key, value in found.items()}
    if last in _TEXTS:
        return {prefix or "text": _text(data)}
    if last in _VALUES:
        return {prefix or last: _text(data).strip()}
    return {_column(ending): Member(data, f".{last}")}


def _column(ending: str) -> str:
    """Of a file that is neither text nor JSON."""
    prefix, _, last = ending.rpartition(".")
    kinds = [kind for kind, row in MODALITIES.items() if f".{last}" in row.endings]
    return prefix or next(iter(kinds), last)


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise Unreadable(f"is not UTF-8 at byte {error.start}") from error


def _parsed(data: bytes) -> Any:
    try:
        found = json.loads(_text(data))
        json.dumps(found, ensure_ascii=False).encode()  # half of a pair is no character
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"is not JSON: {error}") from error
    return found
