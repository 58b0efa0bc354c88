"""The table of methods in `mtmm_jax/balancing/README.md`, generated from their docstrings.

python -m mtmm_jax.benchmarks.balancing.page
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mtmm_jax import balancing

PAGE = Path(balancing.__file__).with_name("README.md")
HEADER = "| method | what it does | tier | use it | not |\n|---|---|---|---|---|\n"


def table(methods: Mapping[str, Callable[..., Any]] | None = None) -> str:
    """A row per method: the docstring's first sentence, the tier, when to use it and when not."""
    methods = balancing.METHODS if methods is None else methods
    return HEADER + "".join(_row(name, method) for name, method in methods.items())


def _row(name: str, method: Callable[..., Any]) -> str:
    text = " ".join((method.__doc__ or "").split())
    what = re.split(r"(?<=[.:]) |\. |$", text.partition(": ")[2] or text, maxsplit=1)[0]
    use, _, rest = text.partition("Use it: ")[2].partition(" Not: ")
    against = re.split(r" Args:| Example", rest)[0]
    rule = method(2, **({"members": (0, 1)} if name == "blending" else {})).rule
    tier = rule.needs + (", two samples" if rule.second_sample else "")
    cells = (f"`{name}`", what.rstrip(".:,;"), tier, use.rstrip("."), against.rstrip("."))
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def rewritten(page: str, methods: Mapping[str, Callable[..., Any]] | None = None) -> str:
    """The page with its table made anew."""
    before, _, after = page.partition(HEADER)
    return before + table(methods) + after[re.match(r"(\|.*\n)*", after).end() :]


if __name__ == "__main__":
    PAGE.write_text(rewritten(PAGE.read_text()))
