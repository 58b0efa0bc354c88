"""The systems of the literature as configs, each run beside its baselines.

    python -m mtmm_jax.benchmarks.recipes --json recipes.json --workdir runs/recipes
    python -m mtmm_jax.benchmarks.recipes --only fusion_early,fusion_late --seeds 0,1,2

A recipe is a config of `configs/`; `RECIPES` says what it is compared with. Most are trained
without a folder; where checkpoints, validation or several runs belong to the method, folders are
made under --workdir. Rows that stand in the JSON file are not run again. The table is Markdown.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mtmm_jax.benchmarks.board import Board, arguments, names_of, seeds_of
from mtmm_jax.benchmarks.recipe_runs import Run, key_of, rows_of
from mtmm_jax.command import console, guarded, prepare_jax

QUICK = 10  # steps


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A row of the table.

    Attributes:
        system: what the literature calls it.
        run: the config.
        beside: what it is compared with, by words for the table.
    """

    system: str
    run: Run
    beside: Mapping[str, Run]


def _alone(config: str, tasks: Sequence[str], *changes: str) -> dict[str, Run]:
    """Each task in a model of its own."""
    return {
        f"{one} alone": Run(config, (*changes, *(f"tasks.{t}=None" for t in tasks if t != one)))
        for one in tasks
    }


def _one_modality(config: str, modalities: Sequence[str], *without: str) -> dict[str, Run]:
    """Each modality in a model of its own, without some tasks."""
    gone = ("model.modality_dropout=0.0", *(f"tasks.{task}=None" for task in without))
    return {
        f"{one} alone": Run(
            config, (*gone, *(f"model.encoders.{m}=None" for m in modalities if m != one))
        )
        for one in modalities
    }


def _transferred(config: str) -> dict[str, Run]:
    """Other lambdas, each end alone, and one after the other."""
    ends = {
        part: Run(config, (f"data.trained=['{part}']", "data.mixing=accumulate"))
        for part in ("source", "target")
    }
    rows, losses = "data.mixing.weights=[1,{:g}]", "balancing.weights=[{:g},1]"
    change = losses if config == "transfer_tasks" else rows
    lambdas = {f"lambda {x:g}": Run(config, (change.format(x),)) for x in (0.1, 10)}
    then = dataclasses.replace(ends["target"], how="fit", after=ends["source"])
    return {
        "lambda 0": ends["source"],
        **lambdas,
        "target alone": ends["target"],
        "source, then target": then,
    }


_EMOJI = ("category", "subcategory", "year")
_FILMS = ("genre", "tomatometer", "metacritic", "rating", "box_office")
_MODALITIES = ("image", "text", "audio")
_LATE = {"late fusion": Run("fusion_late")}
_HARD = {"shared weights": Run("shared_weights")}
_OWN = {"own networks": Run("shared_features")}
_EQUAL = {"equal weights": Run("weights_static", ("balancing=equal",))}
_MEMBERS = tuple(f"independent_{m}" for m in _MODALITIES)
_SENSORS = ("*",)
_TEMPORAL = "model.encoders.video.temporal=gru"
_DETECT = "detect_and_classify"


def _entries() -> Iterator[Recipe]:
    def row(system: str, config: str, beside: Mapping[str, Run], **options: Any) -> Recipe:
        return Recipe(system, Run(config, **options), beside)

    # At equal compute in all: four tasks alone share the steps, a modality costs a third of three.
    tasks = (*_EMOJI, "retrieval")
    apart = _alone("emoji", tasks, "steps=250")
    yield row(
        "multi-task + multi-modal",
        "emoji",
        apart | _one_modality("emoji", _MODALITIES, "retrieval"),
    )
    yield row("shared weights", "shared_weights", _alone("shared_weights", _EMOJI))
    layers = ("digit", "speaker", "task_1")
    yield row("shared layers", "shared_layers", _alone("shared_layers", layers))
    yield row("shared features", "shared_features", _HARD)
    yield row("shared features, frozen", "shared_features_frozen", _OWN)
    yield row("soft sharing, cross-stitch", "soft_cross_stitch", _HARD | _OWN)
    yield row("soft sharing, distance", "soft_distance", _OWN)
    for rule in ("mean", "learned"):
        yield Recipe(
            f"independent training, fused by {rule}",
            Run("independent_image", how=rule, members=_MEMBERS),
            _LATE,
        )
    yield row("joint training", "joint_training", _LATE)
    labels = ("category", "subcategory")
    supervised = {"with labels": Run("independent_image")}
    yield row("cross-modal learning", "contrastive", supervised, zero_shot=labels)
    yield row("modality translation", "translation", {})
    yield row("early fusion, raw", "fusion_early_raw", _LATE)
    yield row("early fusion, tokens", "fusion_early", _LATE)
    yield row("middle fusion", "fusion_middle", _LATE)
    singles = {f"{m} alone": Run(f"independent_{m}") for m in _MODALITIES}
    yield row("late fusion, concatenation", "fusion_late", singles)
    yield row("late fusion, fixed weights", "fusion_late_fixed", _LATE)
    yield row("late fusion, learned weights", "fusion_late_learned", _LATE)
    yield row("decision fusion, mean", "fusion_decision", _LATE)
    yield row("decision fusion, learned", "fusion_decision_learned", _LATE)
    yield row("Transformer fusion", "fusion_transformer", _LATE)
    yield row("graph fusion, GCN", "fusion_gcn", _LATE)
    yield row("graph fusion, GAT", "fusion_gat", _LATE)
    one = _one_modality("image_text_small", ("image", "text"))
    yield row("image-text, ResNet and BERT", "image_text_small", one)
    unread = {"never saw the text": Run("written_words", ("model.encoders.text=None",))}
    yield row("image with text inside it", "written_words", unread, without=("text",))
    order = {"GRU over frames": Run("video_understanding_small", (_TEMPORAL,))}
    yield row("video understanding", "video_understanding_small", order)
    loose = {"not aligned": Run("video_aligned", ("model.align=none",))}
    yield row("video understanding, aligned", "video_aligned", loose)
    both = ("boxes", "present_categories")
    yield row("classification + detection", "detect_and_classify", _alone(_DETECT, both))
    yield row("task weights, static", "weights_static", _EQUAL)
    yield row("task weights, performance", "weights_performance", _EQUAL, how="fit")
    yield row("task weights, learned", "weights_learned", _EQUAL)
    yield row("task weights, cross-validated", "weights_cross_validated", _EQUAL, how="cv")
    yield row("task weights, uncertainty", "weights_uncertainty", _EQUAL)
    yield row("task attention", "task_attention", _HARD)
    yield row("task attention, queries", "task_queries", _HARD)
    yield row("regularised multi-task", "regularised_tasks", _OWN)
    yield row("regularised multi-modal", "regularised_modalities", _LATE)
    for between in ("domains", "tasks", "modalities"):
        config = f"transfer_{between}"
        yield row(f"transfer between {between}", config, _transferred(config))
    unaided = {"category alone": Run("few_labels", ("tasks.retrieval=None",))}
    yield row("few labels", "few_labels", unaided)
    films = _alone("many_tasks", _FILMS, "balancing=equal")
    yield row("many tasks, missing labels", "many_tasks", films)
    for name in ("driving", "medical", "home", "traffic", "video"):
        yield row(f"synthetic: {name}", f"scenario_{name}", {}, without=_SENSORS)
    said = ("transcript", "intent", "reply")
    yield row("synthetic: service", "scenario_service", _alone("scenario_service", said))


RECIPES: dict[str, Recipe] = {recipe.run.name: recipe for recipe in _entries()}


def table(board: Board, names: Sequence[str], steps: int | None = None) -> str:
    """Markdown: a line for each recipe that was run, test figures, mean ± standard deviation."""
    lines = ["| system | config | test | beside it |", "|---|---|---|---|"]
    for name in names:
        recipe = RECIPES[name]
        mine = board.find(**key_of(recipe.run, steps))
        if not mine:
            continue
        beside, config = "; ".join(besides(board, recipe, mine, steps)), f"`{recipe.run.config}`"
        lines.append(f"| {recipe.system} | {config} | {cells(mine)} | {beside} |")
    return "\n".join(lines)


def besides(
    board: Board, recipe: Recipe, mine: Sequence[Mapping[str, Any]], steps: int | None = None
) -> list[str]:
    """What stands beside a recipe, and what it reaches without a modality."""
    told = [
        f"{label}: {cells(found, mine)}"
        for label, run in recipe.beside.items()
        if (found := board.find(**key_of(run, steps)))
    ]
    for modality in mine[0].get("without", {}):
        hidden = [{**row, "test": row["without"][modality]} for row in mine]
        told.append(f"without {modality}: {cells(hidden)}")
    return told


def cells(rows: Sequence[Mapping[str, Any]], like: Sequence[Mapping[str, Any]] = ()) -> str:
    """The headlines of some rows, one a seed; with `like` those of the tasks that it has too."""
    known = set(like[0]["test"]) if like else set(rows[0]["test"])
    figure = rows[0]["figure"]
    # What has other tasks altogether is told whole.
    tasks = [task for task in rows[0]["test"] if task in known] or list(rows[0]["test"])
    return ", ".join(
        " ".join(filter(None, (task, figure[task], _shown([row["test"][task] for row in rows]))))
        for task in tasks
    )


def _shown(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    parts = [np.mean(known)] + ([np.std(known)] if len(known) > 1 else [])
    return " ± ".join(re.sub(r"^(-?)0\.", r"\1.", f"{part:.3f}") for part in parts)


def parser() -> argparse.ArgumentParser:
    p = arguments(
        "recipes",
        "Trains the recipes of configs/ and their baselines; prints a Markdown table.",
        only="names parted by commas, such as fusion_early,joint_training",
        quick=QUICK,
        seeds="0",
    )
    p.add_argument("--workdir", default="runs/recipes", help="of runs that need a folder")
    return p


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    names = names_of(options.only, RECIPES, "recipe")
    prepare_jax()

    out, board, folder = console(), Board(options.json), Path(options.workdir)
    steps = QUICK if options.quick else None
    seeds = seeds_of(options.seeds, options.quick)
    plan = {name: [RECIPES[name].run, *RECIPES[name].beside.values()] for name in names}
    for number, (name, runs) in enumerate(plan.items(), start=1):
        for run in runs:
            key = key_of(run, steps)
            left = board.left(seeds, **key)
            if not left:
                continue
            changed = " ".join(run.changes)
            out.print(f"{number}/{len(plan)} {name}: {run.name} {changed}", highlight=False)
            for row in rows_of(run, left, steps, folder):
                board.add({**key, **row})
    print(table(board, names, steps))
    return 0


if __name__ == "__main__":
    sys.exit(main())
