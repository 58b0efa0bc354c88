"""The table of recipes and their baselines, as Markdown."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from mtmm_jax.benchmarks.recipes.runs import TrainingRun, key_of
from mtmm_jax.benchmarks.tables.result_table import Board

BETTER = "†"


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A row of the table.

    Attributes:
        system: what the literature calls it.
        run: the config.
        baselines: what it is compared with, by words for the table.
        name: for --only, where several rows have one config.
    """

    system: str
    run: TrainingRun
    baselines: Mapping[str, TrainingRun]
    name: str | None = None


def table(board: Board, recipes: Iterable[Recipe], steps: int | None = None) -> str:
    """Markdown: a line for each recipe that was run, test metrics, mean ± standard deviation.

    What is better than the recipe's own bears a `BETTER`.
    """
    lines = ["| system | config | test | trivial | baselines |", "|---|---|---|---|---|"]
    for recipe in recipes:
        mine = board.find(**key_of(recipe.run, steps))
        if not mine:
            continue
        baselines = "; ".join(baseline_notes(board, recipe, mine, steps))
        about = f"{recipe.system} | `{recipe.run.config}`"
        lines.append(f"| {about} | {cells(mine)} | {trivial(mine)} | {baselines} |")
    return "\n".join(lines)


def trivial(rows: Sequence[Mapping[str, Any]]) -> str:
    """Metrics of trivial predictions for a recipe's tasks, the same for all seeds."""
    known = [{**row, "test": row["trivial"]} for row in rows if row.get("trivial")]
    return cells(known[:1]) if known else "-"


def baseline_notes(
    board: Board, recipe: Recipe, mine: Sequence[Mapping[str, Any]], steps: int | None = None
) -> list[str]:
    """The metrics of a recipe's baselines, of itself without a modality, and of its members."""
    notes = [
        f"{label}: {cells(found, mine)}"
        for label, run in recipe.baselines.items()
        if (found := board.find(**key_of(run, steps)))
    ]
    for modality in mine[0].get("without", {}):
        hidden = [{**row, "test": row["without"][modality]} for row in mine]
        notes.append(f"without {modality}: {cells(hidden)}")
    whole = [row for row in mine if "members" in row]
    for member in whole[0]["members"] if whole else ():
        single = [{**row, "test": row["members"][member]} for row in whole]
        notes.append(f"{member}: {cells(single, mine)}")
    return notes


def cells(rows: Sequence[Mapping[str, Any]], like: Sequence[Mapping[str, Any]] = ()) -> str:
    """The headlines of some rows, one a seed; with `like` those of the tasks that it has too, of
    which some are `BETTER`."""
    known = set(like[0]["test"]) if like else set(rows[0]["test"])
    metric = rows[0]["metric"]
    # A run with other tasks altogether is listed with all of them.
    tasks = [task for task in rows[0]["test"] if task in known] or list(rows[0]["test"])

    def cell(task: str) -> str:
        values = _values(rows, task)
        sign = -1 if task in rows[0].get("smaller", ()) else 1
        other = _values(like, task)
        better = values and other and sign * (np.mean(values) - np.mean(other)) > 0
        return " ".join(filter(None, (task, metric[task], _shown(values)))) + BETTER * bool(better)

    return ", ".join(map(cell, tasks))


def _values(rows: Sequence[Mapping[str, Any]], task: str) -> list[float]:
    return [row["test"][task] for row in rows if row["test"].get(task) is not None]


def _shown(values: Sequence[float]) -> str:
    if not values:
        return "-"
    parts = [np.mean(values)] + ([np.std(values)] if len(values) > 1 else [])
    return " ± ".join(re.sub(r"^(-?)0\.", r"\1.", f"{part:.3f}") for part in parts)
