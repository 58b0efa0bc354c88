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
from mtmm_jax.benchmarks.tables.entries import tables
from mtmm_jax.command import guarded
from mtmm_jax.registry import ConfigError

ROOT = Path(mtmm_jax.__file__).parent
BEGIN, END = "<!-- entries -->", "<!-- /entries -->"
HEADER = "| entry | what it is | paper | cost | use it, and when not |\n|---|---|---|---|---|\n"
ROOMS = {
    "data": "SOURCES",
    "encoders": "ENCODERS",
    "fusion": "FUSIONS",
    "sharing": "SHARINGS",
    "heads": "HEADS",
    "tasks": "TASKS",
}
_ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5})")
_LAST = re.compile(r"(?:Paper: (?P<paper>.*?)\. )?Costs (?P<cost>.*?)\. Use it: (?P<use>.*)")


def rooms() -> dict[str, Mapping[str, Any]]:
    """Room -> its table."""
    known = tables()
    return {room: known[name] for room, name in ROOMS.items()}


def table(entries: Mapping[str, Any]) -> str:
    """A row for each entry: the docstring's first sentence, the paper, the cost, when to use it."""
    return HEADER + "".join(_row(name, entry) for name, entry in entries.items())


def last(entry: Any) -> dict[str, str]:
    """`{"paper", "cost", "use"}` of an entry; empty where its docstring does not say.

    The paragraph that says so is "Paper: Perez et al. 2018, arXiv:1709.07871. Costs one matrix a
    modality. Use it: .. Not: ..", the last one before the arguments.
    """
    about = re.split(r"\n\s*(?:Attributes|Args):", inspect.getdoc(entry) or "")[0]
    found = _LAST.search(" ".join(about.strip().split("\n\n")[-1].split()))
    return {key: (found and found[key]) or "" for key in ("paper", "cost", "use")}


def _row(name: str, entry: Any) -> str:
    first = " ".join((inspect.getdoc(entry) or "").split("\n\n")[0].split())
    what = first if len(first) < 160 else re.split(r"(?<=[.:;]) ", first, maxsplit=1)[0]
    about = last(entry)
    paper = _ARXIV.sub(r"[\g<0>](https://arxiv.org/abs/\1)", about["paper"])
    cells = (f"`{name}`", what.rstrip(".:;"), paper, about["cost"], about["use"].rstrip("."))
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def rewritten(page: str, entries: Mapping[str, Any]) -> str:
    """The page with its table made anew."""
    return between(page, BEGIN, END, f"\n{table(entries)}", "a room's README.md")


def between(page: str, begin: str, end: str, content: str, where: str) -> str:
    """The page with another content between two comments; `where` is named if it has none."""
    before, found, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ConfigError(f"{where}: has no lines {begin!r} and {end!r}")
    return f"{before}{begin}{content}{end}{after}"


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
