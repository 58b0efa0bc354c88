"""Content and defects of a table: `python -m mtmm_jax.data.inspect.check TABLE`.

`--write own.py` writes a config of it that every command takes. Exit
codes: 0 nothing, or only doubts, 1 problems were found, 2 it cannot be checked.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.markup import escape

from mtmm_jax import registry
from mtmm_jax.batch import Spec
from mtmm_jax.data.inspect.columns import TAIL, ColumnLook, look_at_columns
from mtmm_jax.data.inspect.described import KEYS, add_options, describe
from mtmm_jax.data.inspect.doubts import doubts_of, note_doubts
from mtmm_jax.data.inspect.packs import PACKED, is_pack, packed_problems
from mtmm_jax.data.inspect.streamed import check_stream, is_large, look_at_stream
from mtmm_jax.data.inspect.written import config_text
from mtmm_jax.data.pipeline.source import Source, split_sizes
from mtmm_jax.data.sources.manifest.bad import BadRows, Problem
from mtmm_jax.data.sources.manifest.rows import Rows, read_rows
from mtmm_jax.data.sources.manifest.source import check_limits, from_rows
from mtmm_jax.data.sources.sharded import open_stream, packed
from mtmm_jax.modalities import MODALITIES
from mtmm_jax.ranges import Natural
from mtmm_jax.readers.files import Folder
from mtmm_jax.readers.limits import Unreadable
from mtmm_jax.registry import ConfigError, one_line

_SHOWN = 50


@dataclasses.dataclass(frozen=True)
class Report:
    """Findings of a check.

    Attributes:
        path: of the manifest.
        rows: how many there are, broken ones included.
        splits: how many of them can be used in each split.
        kinds: modality or target -> what it was taken as.
        problems: by line.
        doubts: what a person should know, such as gaps and classes with few rows.
        columns: what each holds and was taken as.
    """

    path: str
    rows: int
    splits: dict[str, int]
    kinds: dict[str, str]
    problems: list[Problem]
    doubts: list[Problem]
    columns: list[ColumnLook]

    @property
    def summary(self) -> dict[str, int]:
        """Sort of problem -> how many, the most frequent first."""
        found = (*self.problems, *self.doubts)
        return dict(collections.Counter(p.about for p in found).most_common())

    def to_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "summary": self.summary}


def check(
    table: Any,
    description: Mapping[str, Any],
    progress: Callable[[Iterable[int], int], Iterable[int]] = lambda rows, total: rows,
    looks: Sequence[ColumnLook] | None = None,
) -> Report:
    """Reads every row and every file of a table.

    Args:
        table: a path, or columns in memory: what `manifest` takes.
        description: the arguments of `manifest` that say what its columns are.
        progress: `(rows, total)` -> the rows, shown while they are gone through.
        looks: at the columns, if at hand.
    """
    if isinstance(table, str | os.PathLike):
        if is_pack(Path(table)):
            return check_pack(Path(table), progress)
        if is_large(Path(table)):
            return _check_stream(Path(table), description, looks)
    limits = check_limits(description.get("limits"))
    rows = read_rows(table, limits)
    folder = Folder(rows.base, limits)
    bad = BadRows.collecting(rows.path, rows.lines)
    options = {key: description[key] for key in KEYS if key in description and key != "limits"}
    source = from_rows(rows, folder, bad, limits, **{"targets": {}, **options})
    contents = _Contents(rows, folder, _media(description["modalities"]), source, bad)
    for row in progress(range(len(rows)), len(rows)):
        source.compose(np.array([row]), None)
        contents.look(row)
    if looks is None:
        looks = look_at_columns(rows, folder)
    note_doubts(rows, _as_described(looks, description), source, description.get("id", "id"), bad)
    return Report(
        path=str(rows.path),
        rows=len(rows) + len(rows.broken),
        splits=split_sizes(source, bad),
        kinds=kinds_in(source.spec),
        problems=bad.problems,
        doubts=bad.doubts,
        columns=list(looks),
    )


def _check_stream(
    path: Path, description: Mapping[str, Any], looks: Sequence[ColumnLook] | None
) -> Report:
    """The report on a table that is not held in memory."""
    stream = open_stream(path, check_limits(description.get("limits")))
    if looks is None:
        _, looks = look_at_stream(stream, ())
    found = check_stream(stream, description)
    looks = [
        dataclasses.replace(look, **found.counts[look.name]) if look.name in found.counts else look
        for look in looks
    ]
    doubts = [*found.doubts, *doubts_of(_as_described(looks, description), found.rows, path)]
    return Report(
        path=str(path),
        rows=found.rows,
        splits=found.splits,
        kinds=kinds_in(found.spec),
        problems=found.problems,
        doubts=doubts,
        columns=list(looks),
    )


def check_pack(
    out: Path, progress: Callable[[Iterable[int], int], Iterable[int]] = lambda rows, total: rows
) -> Report:
    """The report on packed rows: every byte of every shard is what was written."""
    source = packed(out)
    problems = packed_problems(out, progress)
    rows = sum(map(len, source.rows.values())) + sum(
        problem.line is not None for problem in problems
    )
    return Report(
        path=str(out),
        rows=rows,
        splits=split_sizes(source),
        kinds=kinds_in(source.spec),
        problems=problems,
        doubts=[],
        columns=[],
    )


def kinds_in(spec: Spec) -> dict[str, str]:
    """Modality or target -> its kind, in words."""
    return {
        **{name: f"modality, {one.kind}" for name, one in spec.modalities.items()},
        **{name: f"target, {one.kind}" for name, one in spec.targets.items()},
    }


def _as_described(looks: Sequence[ColumnLook], description: Mapping[str, Any]) -> list[ColumnLook]:
    """The looks, but a column that is no target by the description is not doubted as one."""
    targets = {
        registry.entry_of(spec).get("column") or name
        for name, spec in description.get("targets", {}).items()
    }
    return [
        dataclasses.replace(look, role="table")
        if look.role == "target" and look.name not in targets
        else look
        for look in looks
    ]


def _media(modalities: Mapping[str, Any]) -> list[str]:
    """The columns that name files whose content must not be in two splits."""
    entries = {name: registry.entry_of(spec) for name, spec in modalities.items()}
    return [
        entry.get("column") or name
        for name, entry in entries.items()
        if MODALITIES[entry["kind"]].files
    ]


class _Contents:
    """Remembers in which split the content of a file was seen first."""

    def __init__(
        self, rows: Rows, folder: Folder, columns: Sequence[str], source: Source, bad: BadRows
    ) -> None:
        self._rows, self._folder, self._columns, self._bad = rows, folder, columns, bad
        self._split = {row: split for split, found in source.rows.items() for row in found.tolist()}
        self._first: dict[bytes, int] = {}

    def look(self, row: int) -> None:
        for column in self._columns if row in self._split else ():
            name = self._rows.values[row].get(column)
            try:
                content = self._hash(name) if isinstance(name, str) else None
            except Unreadable:  # reported where it was decoded
                continue
            if content is None:
                continue
            first = self._first.setdefault(content, row)
            if self._split[first] != self._split[row]:
                reason = (
                    f"is in {self._split[row]} and has the content of line "
                    f"{self._rows.lines[first]}, which is in {self._split[first]}"
                )
                self._bad.note(row, column, name, reason, "in two splits", doubt=False)

    def _hash(self, name: str) -> bytes:
        files = [name]
        if self._folder.is_folder(name):
            files = [f"{name.rstrip('/')}/{file}" for file in sorted(self._folder.names(name))]
        state = hashlib.blake2b(digest_size=16)
        for file in files:
            state.update(hashlib.blake2b(self._folder.read(file)).digest())
        return state.digest()


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m mtmm_jax.data.inspect.check",
        description="Reads every row and file of a manifest and reports what is wrong.",
        epilog="What the columns are is known from --config, from NAME.description.json next to "
        "NAME.jsonl, or from --modality and --target; otherwise it is guessed. With --config "
        "FILE.py values of the config are set by --config.section.key=value.",
        allow_abbrev=False,
    )
    add_options(p)
    p.add_argument("--write", metavar="OWN.py", help="write a config of the table there")
    p.add_argument("--weights", metavar="FOLDER", help="of --write: a pretrained encoder of texts")
    p.add_argument("--json", metavar="FILE", help="write the report there, too")
    p.add_argument(
        "--show", type=int, default=_SHOWN, help="problems to print (default %(default)s)"
    )
    return p


def main(argv: Sequence[str] | None = None) -> int:
    try:
        return run(argv)
    except ConfigError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2


def run(argv: Sequence[str] | None = None) -> int:
    """`main` for Python: 0 or 1, and a `ConfigError` where the table cannot be checked."""
    arguments, rest = parser().parse_known_args(argv)
    if unknown := [word for word in rest if not word.startswith("--config.")]:
        raise ConfigError(f"check: {unknown[0]!r} is not understood; see --help")
    return _run(arguments, rest)


def _run(arguments: argparse.Namespace, overrides: Sequence[str]) -> int:
    from rich.console import Console
    from rich.progress import track

    out = Console(width=None if sys.stdout.isatty() else 120)
    shown = Console(stderr=True)
    found = describe(arguments, overrides)
    out.print(found.origin, highlight=False, markup=False, soft_wrap=True)
    if arguments.weights and not arguments.write:
        raise ConfigError("--weights: belongs to --write")
    written, kind = "", PACKED if is_pack(found.path) else "manifest"
    if arguments.write:
        place, count = Path(arguments.write), found.count
        written = config_text(found.path, place, found.description, count, arguments.weights, kind)

    def progress(rows: Iterable[int], total: int) -> Iterable[int]:
        return track(rows, "checking", total, console=shown, disable=not sys.stderr.isatty())

    report = check(found.path, found.description, progress, found.looks)
    if arguments.json:
        _write(arguments.json, json.dumps(report.to_dict(), indent=1) + "\n", "--json")
    show(report, out, registry.check(arguments.show, Natural, "--show"))
    if arguments.write:
        _write(arguments.write, written, "--write")
        out.print(f"wrote {arguments.write}", highlight=False, soft_wrap=True)
        out.print(
            f"next: python -m mtmm_jax.train --config {arguments.write} --dry_run",
            highlight=False,
            soft_wrap=True,
        )
    return 1 if report.problems else 0


def _write(path: str, text: str, option: str) -> None:
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{option}: cannot write {path}: {error}") from error


def _columns_table(columns: Sequence[ColumnLook]) -> Any:
    from rich.table import Table

    table = Table(title="columns")
    for name in ("column", "taken as", "why"):
        table.add_column(name, overflow="fold")
    for name in ("present", "missing", "distinct"):
        table.add_column(name, justify="right")
    table.add_column("classes")
    for one in columns:
        meaning = " ".join(part for part in (one.role or "left out", one.kind) if part)
        meaning += "".join(f", {key} {value}" for key, value in one.options.items())
        tail = f", {one.tail} with fewer than {TAIL} rows" if one.tail else ""
        classes = f"{len(one.classes)}{tail}" if one.classes else ""
        counts = (f"{n:,}" for n in (one.present, one.missing, one.distinct))
        cells = (one.name, meaning, one.why, *counts, classes)
        table.add_row(*(escape(cell) for cell in cells))
    return table


def show(report: Report, out: Any, most: int) -> None:
    """The columns, the problems, then a table of how many of each sort."""
    from rich.table import Table

    if report.columns:
        out.print(_columns_table(report.columns))

    found = [*report.problems, *report.doubts]
    for problem in found[:most]:
        out.print(f"{problem.about}: {problem}", highlight=False, markup=False, soft_wrap=True)
    if len(found) > most:
        out.print(f"... and {len(found) - most} more (--show)", highlight=False)
    table = Table(title=f"{report.path}: {report.rows} rows")
    table.add_column("")
    table.add_column("count", justify="right")
    for split, count in report.splits.items():
        table.add_row(f"usable in {split}", f"{count:,}")
    wrong = {problem.about for problem in report.problems}
    for about, count in report.summary.items():
        style, word = ("red", "") if about in wrong else ("yellow", "doubt: ")
        table.add_row(f"{word}{about}", f"{count:,}", style=style)
    if not found:
        table.add_row("nothing wrong", "", style="green")
    out.print(table)


if __name__ == "__main__":
    sys.exit(main())
