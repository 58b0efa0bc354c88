"""What is wrong with a folder of files, row by row: `python -m mtmm_jax.data.inspect.check FILE`.

Exit codes: 0 nothing, 1 problems were found, 2 it cannot be checked.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mtmm_jax import registry
from mtmm_jax.data.pipeline.source import Source
from mtmm_jax.data.sources.manifest.bad import BadRows, Problem
from mtmm_jax.data.sources.manifest.described import KEYS, describe
from mtmm_jax.data.sources.manifest.rows import Rows, read_rows
from mtmm_jax.data.sources.manifest.source import check_limits, from_rows
from mtmm_jax.modalities import MODALITIES
from mtmm_jax.ranges import Natural
from mtmm_jax.readers.files import Folder
from mtmm_jax.readers.limits import Unreadable
from mtmm_jax.registry import ConfigError
from mtmm_jax.targets import columns

_SHOWN = 50


@dataclasses.dataclass(frozen=True)
class Report:
    """What was found.

    Attributes:
        path: of the manifest.
        rows: how many there are, broken ones included.
        splits: how many of them can be used in each split.
        kinds: modality or target -> what it was taken as.
        problems: by line.
    """

    path: str
    rows: int
    splits: dict[str, int]
    kinds: dict[str, str]
    problems: list[Problem]

    @property
    def summary(self) -> dict[str, int]:
        """Sort of problem -> how many, the most frequent first."""
        return dict(collections.Counter(p.about for p in self.problems).most_common())

    def to_dict(self) -> dict[str, Any]:
        problems = [dataclasses.asdict(problem) for problem in self.problems]
        return {**dataclasses.asdict(self), "summary": self.summary, "problems": problems}


def check(
    path: str | Path,
    description: Mapping[str, Any],
    progress: Callable[[Iterable[int], int], Iterable[int]] = lambda rows, total: rows,
) -> Report:
    """Reads every row and every file of a manifest.

    Args:
        path: of the manifest.
        description: the arguments of `manifest` that say what its columns are.
        progress: `(rows, total)` -> the rows, shown while they are gone through.
    """
    path = Path(path)
    limits = check_limits(description.get("limits"))
    rows = read_rows(path, limits)
    folder = Folder(path.parent, limits)
    bad = BadRows.collecting(path, rows.lines)
    told = {key: description[key] for key in KEYS if key in description and key != "limits"}
    source = from_rows(rows, folder, bad, limits, **{"targets": {}, **told})
    _empty(rows, bad)
    _repeated_ids(rows, description.get("id", "id"), bad)
    contents = _Contents(rows, folder, _media(description["modalities"]), source, bad)
    for row in progress(range(len(rows)), len(rows)):
        source.compose(np.array([row]), None)
        contents.look(row)
    return Report(
        path=str(path),
        rows=len(rows) + len(rows.broken),
        splits={
            split: sum(1 for row in found.tolist() if row not in bad)
            for split, found in source.rows.items()
        },
        kinds={
            **{name: f"modality, {one.kind}" for name, one in source.spec.modalities.items()},
            **{name: f"target, {one.kind}" for name, one in source.spec.targets.items()},
        },
        problems=bad.problems,
    )


def _empty(rows: Rows, bad: BadRows) -> None:
    for column in sorted(rows.columns):
        if all(row.get(column) in (None, "", []) for row in rows.values):
            bad.structure(None, column, None, "has no value in any row", "empty column")


def _repeated_ids(rows: Rows, column: str, bad: BadRows) -> None:
    first: dict[str, int] = {}
    for row, cells in enumerate(rows.values):
        id = cells.get(column)
        if id is not None and first.setdefault(str(id), row) != row:
            line = rows.lines[first[str(id)]]
            bad.structure(row, column, id, f"is the id of line {line} too", "repeated id")


def _media(modalities: Mapping[str, Any]) -> list[str]:
    """The columns that name files whose content must not be in two splits."""
    kinds = {
        name: {"kind": spec} if isinstance(spec, str) else spec for name, spec in modalities.items()
    }
    files = {name: spec for name, spec in kinds.items() if MODALITIES[spec["kind"]].files}
    return [spec.get("column") or name for name, spec in files.items()]


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
                self._bad.structure(row, column, name, reason, "in two splits")

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
        epilog="What the columns are is said by --config, by NAME.description.json beside "
        "NAME.jsonl, or by --modality and --target; otherwise it is guessed, and said.",
        allow_abbrev=False,
    )
    p.add_argument("manifest", help="a .jsonl or .csv file")
    p.add_argument("--config", help="a .json, or a .py with `get_config()`, which is run")
    kinds = f"kinds: {', '.join(sorted(MODALITIES))}"
    p.add_argument("--modality", action="append", metavar="NAME=KIND[:COLUMN]", help=kinds)
    kinds = f"kinds: {', '.join(sorted(columns()))}"
    p.add_argument("--target", action="append", metavar="NAME=KIND[:COLUMN]", help=kinds)
    p.add_argument("--split", help="a column, or shares such as train=0.8,test=0.2")
    p.add_argument("--id", help="the column that names an example")
    p.add_argument("--limit", action="append", metavar="NAME=VALUE", help="such as pixels=1000000")
    p.add_argument("--json", metavar="FILE", help="write the report there, too")
    p.add_argument(
        "--show", type=int, default=_SHOWN, help="problems to print (default %(default)s)"
    )
    return p


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    try:
        return _run(arguments)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _run(arguments: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.progress import track

    out = Console(width=None if sys.stdout.isatty() else 120)
    shown = Console(stderr=True)
    path = Path(arguments.manifest)
    description, said = describe(path, arguments)
    for line in said:
        out.print(line, highlight=False, markup=False, soft_wrap=True)

    def progress(rows: Iterable[int], total: int) -> Iterable[int]:
        return track(rows, "checking", total, console=shown, disable=not sys.stderr.isatty())

    report = check(path, description, progress)
    if arguments.json:
        try:
            Path(arguments.json).write_text(json.dumps(report.to_dict(), indent=1) + "\n")
        except OSError as error:
            raise ConfigError(f"--json: cannot write {arguments.json}: {error}") from error
    show(report, out, registry.check(arguments.show, Natural, "--show"))
    return 1 if report.problems else 0


def show(report: Report, out: Any, most: int) -> None:
    """The problems, then a table of how many of each sort."""
    from rich.table import Table

    for problem in report.problems[:most]:
        out.print(f"{problem.about}: {problem}", highlight=False, markup=False, soft_wrap=True)
    if len(report.problems) > most:
        out.print(f"... and {len(report.problems) - most} more (--show)", highlight=False)
    table = Table(title=f"{report.path}: {report.rows} rows")
    table.add_column("")
    table.add_column("count", justify="right")
    for split, count in report.splits.items():
        table.add_row(f"usable in {split}", f"{count:,}")
    for about, count in report.summary.items():
        table.add_row(about, f"{count:,}", style="red")
    if not report.problems:
        table.add_row("nothing wrong", "", style="green")
    out.print(table)


if __name__ == "__main__":
    sys.exit(main())
