"""Predictions for the rows of a manifest, written as JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.progress import track

from mtmm_jax.inference.answers import document
from mtmm_jax.inference.manifest_batches import ManifestBatches
from mtmm_jax.store.files import finite, write


def write_predictions(
    several: Sequence[ManifestBatches],
    answers: Iterator[tuple[int, dict[str, Any]]],
    path: Path,
    out: Any,
) -> None:
    """Writes a JSON line for each row of a manifest: its line, its id, and its answers or its
    error (`inference.answers`).

    Args:
        several: the manifest as each run reads it, one or more.
        answers: `(row, predictions)`, as they are computed.
        path: the file, written whole or not at all.
        out: a console, which shows the progress.
    """
    manifest = several[0]
    if absent := dict.fromkeys(name for one in several for name in one.absent):
        out.print(f"in no row: {', '.join(absent)}", highlight=False)
    seen = {"total": len(manifest.usable), "console": out, "disable": not out.is_terminal}
    documents = dict(track(answers, "predicting", **seen))
    errors = {problem.line: str(problem) for problem in manifest.bad.problems}
    lines = {line: document(line=line, id=line) for line in errors}
    for row in range(len(manifest.rows)):
        named = manifest.named(row)
        lines[named["line"]] = document(documents.get(row), **named)
    for line, error in errors.items():
        lines[line] = document(line=line, id=lines[line]["id"], error=error)
    whole = "".join(json.dumps(finite(lines[line])) + "\n" for line in sorted(lines))
    write(path, whole.encode())
    out.print(
        f"{len(lines) - len(errors)} rows predicted, {len(errors)} bad, in {path}",
        highlight=False,
        soft_wrap=True,
    )
