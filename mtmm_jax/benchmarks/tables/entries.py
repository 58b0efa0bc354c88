"""Rewrites the entries in a README's table of rooms from the tables themselves.

    python -m mtmm_jax.benchmarks.tables.entries mtmm_jax/README.md

A row is recognised by the name of its table in backquotes, such as `FUSIONS`, and its last column
becomes the names of the table's entries. Adding an entry needs no edit: run it before a release.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mtmm_jax.command import guarded


def tables() -> dict[str, Mapping[str, Any]]:
    """The tables that a README lists, by name."""
    from mtmm_jax import data, encoders, fusion, heads, modalities, sharing, targets, tasks

    return {
        "MODALITIES": modalities.MODALITIES,
        "TARGETS": targets.TARGETS,
        "SOURCES": data.SOURCES,
        "ENCODERS": encoders.ENCODERS,
        "FUSIONS": fusion.FUSIONS,
        "SHARINGS": sharing.SHARINGS,
        "HEADS": heads.HEADS,
        "TASKS": tasks.TASKS,
    }


def listed(text: str, name: str) -> list[str] | None:
    """The entries that a README names for a table; None where it has no row."""
    for line in text.splitlines():
        if line.startswith("|") and f"| `{name}` |" in line:
            return [entry.strip() for entry in line.split("|")[-2].split(",")]
    return None


def rewritten(text: str) -> str:
    """The README with the entries that the tables have now."""
    lines = text.split("\n")
    for name, table in tables().items():
        for i, line in enumerate(lines):
            if line.startswith("|") and f"| `{name}` |" in line:
                lines[i] = "|".join([*line.split("|")[:-2], f" {', '.join(table)} ", ""])
    return "\n".join(lines)


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    p = argparse.ArgumentParser(description="Rewrites a README's table of rooms from the tables.")
    p.add_argument("readme", type=Path, help="the README, changed in place")
    path = p.parse_args(argv).readme
    path.write_text(rewritten(path.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
