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
    """Markdown: a line for each metric of each recipe that was run, mean ± standard deviation.

    A baseline that is better than the recipe bears a `BETTER`.
    """
    lines = [
        "| system | config | metric | test | trivial | baselines |",
        "|---|---|---|---|---|---|",
    ]
    for recipe in recipes:
        if mine := board.find(**key_of(recipe.run, steps)):
            lines += _lines(board, recipe, mine, steps)
    return "\n".join(lines)


def _lines(
    board: Board, recipe: Recipe, mine: Sequence[Mapping[str, Any]], steps: int | None
) -> list[str]:
    about, lines = (recipe.system, f"`{recipe.run.config}`"), []
    others, nothing = compared(board, recipe, mine, steps), _trivial(mine)
    # A baseline with other tasks altogether has lines of its own.
    apart = [
        rows for rows in others.values() if not mine[0]["test"].keys() & rows[0]["test"].keys()
    ]
    for task in dict.fromkeys(task for rows in (mine, *apart) for task in rows[0]["test"]):
        notes = [
            f"{label} {_shown(_values(rows, task))}" + BETTER * better(rows, mine, task)
            for label, rows in others.items()
            if task in rows[0]["test"]
        ]
        name = next(filter(None, (_metric(rows, task) for rows in (mine, *apart))), task)
        numbers = (_shown(_values(mine, task)), _shown(_values(nothing, task)))
        lines.append(f"| {' | '.join((*about, name, *numbers, '; '.join(notes)))} |")
        about = ("", "")
    return lines


def compared(
    board: Board, recipe: Recipe, mine: Sequence[Mapping[str, Any]], steps: int | None = None
) -> dict[str, list[Mapping[str, Any]]]:
    """Label -> rows of a recipe's baselines, of itself without a modality, and of its members."""
    found = {
        label: rows
        for label, run in recipe.baselines.items()
        if (rows := board.find(**key_of(run, steps)))
    }
    for modality in mine[0].get("without", {}):
        found[f"without {modality}"] = [{**r, "test": r["without"][modality]} for r in mine]
    with_members = [row for row in mine if "members" in row]
    for member in with_members[0]["members"] if with_members else ():
        found[member] = [{**row, "test": row["members"][member]} for row in with_members]
    return found


def better(rows: Sequence[Mapping[str, Any]], mine: Sequence[Mapping[str, Any]], task: str) -> bool:
    """Whether the mean of `rows` on a task beats that of `mine`, where both have it."""
    values, other = _values(rows, task), _values(mine, task)
    sign = -1 if task in rows[0].get("smaller", ()) else 1
    return bool(values and other and sign * (np.mean(values) - np.mean(other)) > 0)


def trivial(rows: Sequence[Mapping[str, Any]]) -> str:
    """Metrics of trivial predictions for a recipe's tasks, the same for all seeds."""
    known = _trivial(rows)
    return cells(known) if known else "-"


def _trivial(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [{**row, "test": row["trivial"]} for row in rows if row.get("trivial")][:1]


def cells(rows: Sequence[Mapping[str, Any]], most: int | None = None) -> str:
    """The headlines of some rows, one a seed, in one line; the first `most` of them."""
    tasks = list(rows[0]["test"])[:most]
    return ", ".join(f"{_metric(rows, task)} {_shown(_values(rows, task))}" for task in tasks)


def _metric(rows: Sequence[Mapping[str, Any]], task: str) -> str:
    """The task and its metric as words; empty where the rows lack the task."""
    name = rows[0]["metric"].get(task)
    return "" if name is None else f"{task} {name}".strip().replace("_", " ")


def _values(rows: Sequence[Mapping[str, Any]], task: str) -> list[float]:
    return [row["test"][task] for row in rows if row["test"].get(task) is not None]


def _shown(values: Sequence[float]) -> str:
    if not values:
        return "-"
    parts = [np.mean(values)] + ([np.std(values)] if len(values) > 1 else [])
    return " ± ".join(re.sub(r"^(-?)0\.", r"\1.", f"{part:.3f}") for part in parts)
