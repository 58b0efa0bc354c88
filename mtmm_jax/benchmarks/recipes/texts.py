"""Writes the recipes' results into configs/README.md and each docstring.

    python -m mtmm_jax.benchmarks.recipes.texts --json mtmm_jax/benchmarks/results/recipes.json

That page's table stands between two comments. A docstring's last paragraph begins with "Measured".
Run it in a checkout after `benchmarks.recipes`; what nothing was measured of is left as it
is.
"""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mtmm_jax.benchmarks.recipes.recipes import RECIPES
from mtmm_jax.benchmarks.recipes.runs import key_of
from mtmm_jax.benchmarks.recipes.table import cells, table
from mtmm_jax.benchmarks.tables.pages import between
from mtmm_jax.benchmarks.tables.result_table import Board
from mtmm_jax.command import console, guarded
from mtmm_jax.registry import ConfigError
from mtmm_jax.store.files import write

BEGIN, END = "<!-- recipes: benchmarks.recipe_texts writes this table -->", "<!-- /recipes -->"
MEASURED = "Measured"
WIDTH = 100
NUMBERS = 6  # of one recipe in a docstring; all others stand on the page


def measured(board: Board, config: str) -> str | None:
    """A paragraph on a config: its key metrics and cost; None where it was not run.

    The cost is what a run took with one of two cores, as another one ran at the same time.
    """
    sentences, seconds, seeds = [], [], set()
    same = [recipe for recipe in RECIPES.values() if recipe.run.config == config]
    most = NUMBERS if len(same) == 1 else 1
    for recipe in same:
        if mine := board.find(**key_of(recipe.run)):
            name = f"{recipe.system}: " if len(same) > 1 else ""
            sentences.append(f"{name}{cells(mine, most)}.")
            seconds += [row["seconds"] for row in mine]
            seeds |= {row["seed"] for row in mine}
    if not sentences:
        return None
    sentences.append("Trivial predictions and baselines: configs/README.md.")
    each = float(np.median(seconds))
    cost = f"{each:.0f} s" if each < 120 else f"{each / 60:.0f} minutes"
    count = "one seed" if len(seeds) == 1 else f"{len(seeds)} seeds"
    return f"{MEASURED} (test, {count}, {cost} each with one of two cores): {' '.join(sentences)}"


def with_table(text: str, table: str) -> str:
    """The page with the table between its comments."""
    return between(text, BEGIN, END, f"\n\n{table}\n\n", "configs/README.md")


def with_paragraph(source: str, paragraph: str) -> str:
    """A config's source with the paragraph at the end of its docstring."""
    opening, body, rest = re.match(r'(r?""")(.*?)(""".*)', source, re.DOTALL).groups()
    body = re.sub(rf"\n\n{MEASURED} \(.*", "", body.rstrip(), flags=re.DOTALL)
    lines = textwrap.wrap(paragraph, WIDTH, break_on_hyphens=False, break_long_words=False)
    return f"{opening}{body}\n\n" + "\n".join(lines) + f"\n{rest}"


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m mtmm_jax.benchmarks.recipes.texts",
        description="Writes the recipes' metrics into configs/README.md and docstrings.",
    )
    p.add_argument("--json", required=True, help="the rows of benchmarks.recipes")
    p.add_argument("--root", default=".", help="the checkout (default: this folder)")
    return p


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    root, board = Path(options.root), Board(options.json)
    if not board.rows:
        raise ConfigError(f"--json: {options.json} has no rows")
    readme = root / "configs" / "README.md"
    if not readme.exists():
        raise ConfigError(f"--root: there is no {readme}")
    write(readme, with_table(readme.read_text(), table(board, RECIPES.values())).encode())
    configs = dict.fromkeys(recipe.run.config for recipe in RECIPES.values())
    found = {config: paragraph for config in configs if (paragraph := measured(board, config))}
    for config, paragraph in found.items():
        path = next((root / "configs").rglob(f"{config}.py"))
        write(path, with_paragraph(path.read_text(), paragraph).encode())
    console().print(f"{readme} and {len(found)} configs", highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
