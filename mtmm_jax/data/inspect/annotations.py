"""Several people's labels of a row, made one.

    python -m mtmm_jax.data.inspect.annotations labels.jsonl --column category --out one.jsonl

A row's column holds what several people said: `{"ann": "cat", "bob": "dog"}`, `["cat", "dog"]` or
`"cat|dog"`. In the last two the place says who (annotator 1, 2, ...), unless `--annotators` names
the column that lists them in the same order. Nothing, null or "" is no answer.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import io
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mtmm_jax.data.inspect.annotators import METHODS, UNCERTAINTIES, Consensus
from mtmm_jax.ranges import Count
from mtmm_jax.registry import ConfigError, check, choose, one_line

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Answers:
    """The votes in a manifest: `votes [N, A]` are places in `classes`, -1 for none."""

    votes: np.ndarray
    classes: tuple[Any, ...]
    annotators: tuple[str, ...]


def read_rows(path: Path) -> list[Row]:
    """The rows of a JSONL or CSV file, by its ending."""
    choose(path.suffix.lower(), (".jsonl", ".csv"), str(path), "ending")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    if path.suffix.lower() == ".csv":
        rows: list[Any] = list(csv.DictReader(io.StringIO(text)))
    else:
        lines = enumerate(text.split("\n"), 1)
        rows = [_parse(line, f"{path}:{i}") for i, line in lines if line.strip()]
    for i, row in enumerate(rows, 1):
        if not isinstance(row, dict) or None in row:
            raise ConfigError(f"{path}: row {i} is not a set of named columns")
    if not rows:
        raise ConfigError(f"{path}: has no rows")
    return rows


def answers(rows: Sequence[Row], column: str, annotators: str | None, where: str) -> Answers:
    """Labels by annotator, from the column of labels and the one of names, if there is one."""
    known = {name for row in rows for name in row}
    for name in filter(None, (column, annotators)):
        choose(name, known, where, "column")
    said = [_said(row, column, annotators, f"{where}: row {i}") for i, row in enumerate(rows, 1)]
    labels = {_key(value): value for row in said for value in row.values()}
    if not labels:
        raise ConfigError(f"{where}: column {column!r} has no label in any row")
    place = {key: i for i, key in enumerate(sorted(labels))}
    unnamed = annotators is None and all(name.isdecimal() for row in said for name in row)
    names = sorted({name for row in said for name in row}, key=int if unnamed else str)
    votes = np.full((len(rows), len(names)), -1)
    at = {name: i for i, name in enumerate(names)}
    for i, row in enumerate(said):
        for name, value in row.items():
            votes[i, at[name]] = place[_key(value)]
    return Answers(votes, tuple(labels[key] for key in place), tuple(names))


def _key(value: Any) -> str:
    return str(value)


def _said(row: Row, column: str, annotators: str | None, where: str) -> dict[str, Any]:
    """Annotator -> label of one row, without empty cells."""
    value = _unpacked(row.get(column), where)
    if value is None:
        return {}
    if isinstance(value, Mapping):
        if annotators is not None:
            raise ConfigError(f"{where}: {column!r} names its annotators; --annotators is too much")
        pairs = list(value.items())
    else:
        given = value if isinstance(value, list) else [value]
        names = _names(row, annotators, len(given), where)
        pairs = list(zip(names, given, strict=True))
    votes: dict[str, Any] = {}
    for name, label in pairs:
        if label is None or label == "":
            continue
        if isinstance(label, list | dict):
            raise ConfigError(f"{where}: {label!r} is not one label")
        if name in votes:
            raise ConfigError(f"{where}: annotator {name!r} answers twice")
        votes[name] = label
    return votes


def _names(row: Row, annotators: str | None, count: int, where: str) -> list[str]:
    if annotators is None:
        return [str(i) for i in range(1, count + 1)]
    names = _unpacked(row.get(annotators), where)
    names = [str(name) for name in (names if isinstance(names, list) else [names])]
    if len(names) != count:
        raise ConfigError(f"{where}: {count} labels and {len(names)} annotators ({annotators!r})")
    return names


def _unpacked(value: Any, where: str) -> Any:
    """A cell: JSON in a string is read, "a|b" is a list."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    if text[:1] in ("[", "{"):
        return _parse(text, where)
    return [part.strip() for part in text.split("|")]


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{where}: is not JSON: {error}") from error


def aggregated(rows: Sequence[Row], column: str, found: Answers, verdict: Consensus) -> list[Row]:
    """Each row with the label in place of the votes, its probability, and whether it was tied."""
    return [
        {
            **row,
            column: None if label < 0 else found.classes[label],
            f"{column}_probability": None if label < 0 else round(float(p[label]), 6),
            f"{column}_tie": bool(tie),
        }
        for row, label, p, tie in zip(
            rows, verdict.labels, verdict.posterior, verdict.ties, strict=True
        )
    ]


def uncertain(
    rows: Sequence[Row], column: str, found: Answers, verdict: Consensus, kind: str, count: int
) -> list[Row]:
    """The rows to annotate (again), most uncertain first, those without any label before all.

    A row is as it was, votes included, and says its number, its uncertainty and what it may be.
    """
    doubt = verdict.uncertainty(kind)
    unheard = (found.votes < 0).all(1)
    order = np.lexsort((-doubt.round(9), ~unheard))[:count]  # equal ones in the order of the file
    queue = []
    for i in order:
        best = np.argsort(-verdict.posterior[i], kind="stable")[:3]
        likely = {str(found.classes[c]): round(float(verdict.posterior[i, c]), 6) for c in best}
        extra = {"row": int(i) + 1, "uncertainty": round(float(doubt[i]), 6), "likely": likely}
        queue.append({**rows[i], **{f"{column}_{key}": value for key, value in extra.items()}})
    return queue


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """JSONL, whole or not there."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error}") from error
    finally:
        part.unlink(missing_ok=True)


def reliability_table(found: Answers, verdict: Consensus, title: str) -> Any:
    """Annotators, most reliable first: votes, how far to be trusted, agreement, usual mistake."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(title))
    table.add_column("annotator")
    for name in ("votes", "reliability", "agrees with label"):
        table.add_column(name, justify="right")
    table.add_column("most usual mistake")
    heard = found.votes >= 0
    agrees = (found.votes == verdict.labels[:, None]) & heard
    mistakes = verdict.prior[None, :, None] * verdict.confusion
    mistakes = mistakes * (1 - np.eye(len(found.classes)))
    for a in np.argsort(-verdict.reliability, kind="stable"):
        true, voted = np.unravel_index(mistakes[a].argmax(), mistakes[a].shape)
        usual = f"{found.classes[voted]} for {found.classes[true]} ({mistakes[a, true, voted]:.1%})"
        table.add_row(
            escape(found.annotators[a]),
            str(heard[:, a].sum()),
            f"{verdict.reliability[a]:.1%}",
            f"{agrees[:, a].sum() / heard[:, a].sum():.1%}",
            escape(usual) if mistakes[a].any() else "none",
        )
    return table


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m mtmm_jax.data.inspect.annotations",
        description="Several annotators' labels -> one label for each row, and whom to ask again.",
        epilog=(__doc__ or "").split("\n\n", 1)[1],
    )
    p.add_argument("manifest", type=Path, metavar="MANIFEST", help="a .jsonl or .csv file")
    p.add_argument("--column", required=True, help="the column with several labels in each row")
    p.add_argument("--annotators", metavar="COLUMN", help="the column with the annotators' names")
    p.add_argument("--method", default="dawid_skene", help=" or ".join(sorted(METHODS)))
    p.add_argument("--out", type=Path, metavar="FILE", help="where the labels go, as JSONL")
    p.add_argument("--uncertain", type=Path, metavar="FILE", help="where rows to ask about go")
    p.add_argument("--count", type=int, default=50, help="how many rows to ask about (50)")
    p.add_argument("--by", default="entropy", help="uncertainty by entropy or margin")
    return p


def _check(arguments: argparse.Namespace) -> None:
    choose(arguments.method, METHODS, "--method", "method")
    choose(arguments.by, UNCERTAINTIES, "--by", "uncertainty")
    check(arguments.count, Count, "--count")
    files = {
        "MANIFEST": arguments.manifest,
        "--out": arguments.out,
        "--uncertain": arguments.uncertain,
    }
    taken: dict[Path, str] = {}
    for name, path in files.items():
        if path is None:
            continue
        if name != "MANIFEST" and not path.parent.is_dir():
            raise ConfigError(f"{name}: there is no folder {path.parent}")
        if path.is_dir():
            raise ConfigError(f"{name}: {path} is a folder")
        other = taken.setdefault(path.resolve(), name)
        if other != name:
            raise ConfigError(f"{name}: {path} is {other} already; choose another file")


def run(arguments: argparse.Namespace) -> None:
    """All of the command, but for its errors."""
    from rich.console import Console

    _check(arguments)
    where = str(arguments.manifest)
    rows = read_rows(arguments.manifest)
    found = answers(rows, arguments.column, arguments.annotators, where)
    verdict = METHODS[arguments.method](found.votes, len(found.classes))
    if arguments.out:
        write_rows(arguments.out, aggregated(rows, arguments.column, found, verdict))
    if arguments.uncertain:
        queue = uncertain(rows, arguments.column, found, verdict, arguments.by, arguments.count)
        write_rows(arguments.uncertain, queue)
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(reliability_table(found, verdict, f"{arguments.column}: {arguments.method}"))
    console.print(
        f"{len(rows)} rows, {len(found.classes)} classes, {len(found.annotators)} annotators, "
        f"{(found.votes >= 0).sum()} votes; {(verdict.labels < 0).sum()} rows without one, "
        f"{verdict.ties.sum()} ties",
        highlight=False,
    )


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    try:
        run(arguments)
    except ConfigError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
