"""Asking a run about the rows of a manifest: `predict --manifest`, and `predict --label`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mtmm_jax.command import console


def about_many(arguments: argparse.Namespace, rest: Sequence[str]) -> bool:
    """Whether a manifest is asked about; its options checked before a run is opened."""
    from mtmm_jax.data.manifest.bad import ON_BAD
    from mtmm_jax.registry import ConfigError, choose, whole_number

    if arguments.manifest is None:
        for option in ("out", "on_bad", "batch"):
            if getattr(arguments, option) is not None:
                raise ConfigError(f"--{option}: belongs to --manifest FILE")
        return False
    if rest:
        raise ConfigError(f"{rest[0]}: not with --manifest, whose columns say what there is")
    if not arguments.out:
        raise ConfigError("--out: is missing; name the file to write, such as predictions.jsonl")
    out = Path(arguments.out)
    if out.is_dir() or not out.parent.is_dir():
        raise ConfigError(f"--out: {out} is a folder, or its folder does not exist")
    if arguments.batch is not None:
        whole_number(arguments.batch, "--batch")
    choose(arguments.on_bad or "skip", ON_BAD, "--on_bad")
    return True


def about_labels(arguments: argparse.Namespace, rest: Sequence[str]) -> bool:
    """Whether a manifest is to be labelled; its options checked before a run is opened."""
    from mtmm_jax.registry import ConfigError

    if arguments.label is None:
        for option in ("least", "ask", "by"):
            if getattr(arguments, option) is not None:
                raise ConfigError(f"--{option}: belongs to --label MANIFEST")
        return False
    for option in ("manifest", "exported", "workdirs", "rule", "on_bad", "json"):
        if getattr(arguments, option):
            raise ConfigError(f"--{option}: not with --label, which asks one run, --workdir")
    for option in ("workdir", "out"):
        if not getattr(arguments, option):
            raise ConfigError(f"--{option}: is missing")
    if rest:
        raise ConfigError(f"{rest[0]}: not with --label, whose columns say what there is")
    if not Path(arguments.out).parent.is_dir():
        raise ConfigError(f"--out: there is no folder {Path(arguments.out).parent}")
    return True


def label_rows(arguments: argparse.Namespace) -> int:
    """Writes a manifest with labels, and tells whom to ask."""
    from mtmm_jax.training.finished import open_run
    from mtmm_jax.training.labelling import beside, label_manifest

    run, out, path = open_run(arguments.workdir), console(), Path(arguments.out)
    given = {"least": arguments.least, "ask": arguments.ask, "by": arguments.by}
    given |= {"size": arguments.batch}
    options = {key: value for key, value in given.items() if value is not None}
    found = label_manifest(run, Path(arguments.label), path, **options)
    counts = ", ".join(f"{name} in {count}" for name, count in found.counts.items())
    out.print(f"{len(found.rows)} rows, labelled: {counts}, in {path}", highlight=False)
    if found.left_out:
        out.print(f"{found.left_out} lines are no rows and were left out", highlight=False)
    for row in found.asked[:10]:
        likely = {name: next(iter(best)) for name, best in row["likely"].items()}
        shown = ", ".join(f"{name}: {best}?" for name, best in likely.items())
        out.print(f"  line {row['row']}: {row['uncertainty']:.2f}  {shown}", highlight=False)
    if found.asked:
        out.print(f"{len(found.asked)} rows to ask about in {beside(path)}", highlight=False)
    return 0


def ask_many(arguments: argparse.Namespace) -> int:
    """Writes a line for each row of a manifest: its line, its id, and its answers or its error."""
    from mtmm_jax.runs import ensembles
    from mtmm_jax.runs.fused import open_ensemble
    from mtmm_jax.training.asking import ask_file_rows, ask_rows, opened
    from mtmm_jax.training.finished import open_run
    from mtmm_jax.training.requests import open_all, open_requests

    given, size = (arguments.manifest, arguments.on_bad or "skip"), arguments.batch or 64
    if arguments.exported:
        with opened(arguments.exported) as (model, workdir):
            asked = open_requests(given[0], workdir, given[1])
            return _written([asked], ask_file_rows(model, asked, size), Path(arguments.out))
    if arguments.workdirs:
        ensemble = open_ensemble(arguments.workdirs.split(","), arguments.rule)
        several = open_all(given[0], [run.workdir for run in ensemble.runs], given[1])
        answers = ensembles.ask_rows(ensemble, several, size)
        return _written(several, answers, Path(arguments.out))
    run = open_run(arguments.workdir)
    asked = open_requests(given[0], run.workdir, given[1])
    return _written([asked], ask_rows(run, asked, size, Path(arguments.out)), Path(arguments.out))


def _written(
    several: Sequence[Any], answers: Iterator[tuple[int, dict[str, Any]]], path: Path
) -> int:
    """Of a manifest that was asked of one run or more."""
    from rich.progress import track

    from mtmm_jax.training.results import finite
    from mtmm_jax.training.workdir import write

    out, asked = console(), several[0]
    if absent := dict.fromkeys(name for one in several for name in one.absent):
        out.print(f"in no row: {', '.join(absent)}", highlight=False)
    seen = {"total": len(asked.usable), "console": out, "disable": not out.is_terminal}
    told = dict(track(answers, "predicting", **seen))
    errors = {problem.line: str(problem) for problem in asked.bad.problems}
    lines = {line: {"line": line, "id": line} for line in errors}
    for row in range(len(asked.rows)):
        named = asked.named(row)
        lines[named["line"]] = {**named, **({"answers": told[row]} if row in told else {})}
    for line, error in errors.items():
        lines[line] = {"line": line, "id": lines[line]["id"], "error": error}
    whole = "".join(json.dumps(finite(lines[line])) + "\n" for line in sorted(lines))
    write(path, whole.encode())
    out.print(
        f"{len(lines) - len(errors)} rows predicted, {len(errors)} bad, in {path}",
        highlight=False,
        soft_wrap=True,
    )
    return 0
