"""The tables of entries in the rooms' READMEs, generated from docstrings.

    python -m mtmm_jax.benchmarks.tables.pages

writes them anew, between the comments `<!-- entries -->` and `<!-- /entries -->`. Balancing has a
page of its own (`benchmarks.balancing.page`).
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mtmm_jax
from mtmm_jax.command import guarded

ROOT = Path(mtmm_jax.__file__).parent
BEGIN, END = "<!-- entries -->", "<!-- /entries -->"
HEADER = "| entry | what it is | paper | use it, and when not |\n|---|---|---|---|\n"
_PAPER = re.compile(r"\(([A-Z][^()]{3,60}\d{4}[a-z]?)\)|(arXiv:\s?\d{4}\.\d{4,5})")


def rooms() -> dict[str, Mapping[str, Any]]:
    """Room -> its table."""
    from mtmm_jax import data, encoders, fusion, heads, sharing, tasks

    return {
        "data": data.SOURCES,
        "encoders": encoders.ENCODERS,
        "fusion": fusion.FUSIONS,
        "sharing": sharing.SHARINGS,
        "heads": heads.HEADS,
        "tasks": tasks.TASKS,
    }


def table(entries: Mapping[str, Any]) -> str:
    """A row for each entry: the docstring's first sentence, the paper, when to use it."""
    return HEADER + "".join(_row(name, entry) for name, entry in entries.items())


def _row(name: str, entry: Any) -> str:
    text = inspect.getdoc(entry) or ""
    first = " ".join(text.split("\n\n")[0].split())
    found = _PAPER.search(text)
    paper = (found[1] or found[2]) if found else ""
    about = " ".join(re.split(r"\n\s*(?:Attributes|Args):", text)[0].split())
    use = about.partition("Use it: ")[2].replace(" Not: ", " Not: ")
    what = first if len(first) < 160 else re.split(r"(?<=[.:;]) ", first, maxsplit=1)[0]
    cells = (f"`{name}`", what.rstrip(".:;"), paper, use.rstrip("."))
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def rewritten(page: str, entries: Mapping[str, Any]) -> str:
    """The page with its table made anew."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    return f"{before}{begin}\n{table(entries)}{end}{after}" if begin and end else page


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    p = argparse.ArgumentParser(
        prog="python -m mtmm_jax.benchmarks.tables.pages",
        description="Rewrites the tables of entries in the rooms' READMEs from docstrings.",
    )
    p.parse_args(argv)
    for room, entries in rooms().items():
        path = ROOT / room / "README.md"
        path.write_text(rewritten(path.read_text(encoding="utf-8"), entries), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
