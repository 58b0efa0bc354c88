"""The systems of the literature as configs, each run next to its baselines.

    python -m mtmm_jax.benchmarks.recipes --json recipes.json --workdir runs/recipes
    python -m mtmm_jax.benchmarks.recipes --only fusion_early,fusion_late --seeds 0,1,2

A recipe is a config of `configs/`, with a change or two where a row asks for them; `RECIPES` says
what it is compared with. Most are trained without a folder; where checkpoints, validation or
several runs belong to the method, folders are made under --workdir. Rows that stand in the JSON
file are not run again. The table is Markdown.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mtmm_jax.benchmarks.recipes.label_curve import CURVE, OWN_SHARE, curve
from mtmm_jax.benchmarks.recipes.runs import TrainingRun, key_of, rows_of
from mtmm_jax.benchmarks.recipes.table import Recipe, table
from mtmm_jax.benchmarks.tables.result_table import Board, arguments, names_of, seeds_of
from mtmm_jax.command import guarded, prepare_jax

QUICK = 10  # steps


def _alone(config: str, tasks: Sequence[str], *changes: str) -> dict[str, TrainingRun]:
    """Each task in a model of its own."""
    return {
        f"{one} alone": TrainingRun(
            config, (*changes, *(f"tasks.{t}=None" for t in tasks if t != one))
        )
        for one in tasks
    }


def _one_modality(
    config: str, modalities: Sequence[str], *without: str, **bound: str
) -> dict[str, TrainingRun]:
    """Each modality in a model of its own, without some tasks; `bound`: task -> what it reads."""

    def alone(one: str) -> TrainingRun:
        tasks = (*without, *(task for task, read in bound.items() if read != one))
        encoders = (f"model.encoders.{m}=None" for m in modalities if m != one)
        gone = (*(f"tasks.{task}=None" for task in tasks), *encoders)
        return TrainingRun(config, ("model.modality_dropout=0.0", *gone))

    return {f"{one} alone": alone(one) for one in modalities}


def _transferred(config: str) -> dict[str, TrainingRun]:
    """Other lambdas, each end alone, and one after the other."""
    ends = {
        part: TrainingRun(config, (f"data.trained=['{part}']", "data.mixing=accumulate"))
        for part in ("source", "target")
    }
    rows, losses = "data.mixing.weights=[1,{:g}]", "balancing.weights=[{:g},1]"
    change = losses if config == "transfer_tasks" else rows
    lambdas = {f"lambda {x:g}": TrainingRun(config, (change.format(x),)) for x in (0.1, 10)}
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
_LATE = {"late fusion": TrainingRun("fusion_late")}
_HARD = {"shared weights": TrainingRun("shared_weights")}
_OWN = {"own networks": TrainingRun("shared_features")}
_JOINT = {"joint training": TrainingRun("joint_training")}
_EQUAL = {"equal weights": TrainingRun("weights_static", ("balancing=equal",))}
_MEMBERS = tuple(f"independent_{m}" for m in _MODALITIES)
_SENSORS = ("*",)
_SCENARIOS = {
    "driving": {"modalities": ("camera", "range", "voice"), "objects": "camera"},
    "medical": {"modalities": ("image", "record", "genes")},
    "home": {"modalities": ("voice", "image", "sensors")},
    "traffic": {"modalities": ("camera", "radar", "sensors"), "vehicles": "camera"},
    "video": {"modalities": ("video", "audio", "subtitles")},
}
_TEMPORAL = "model.encoders.video.temporal=gru"
_DETECT = "detect_and_classify"


def _entries() -> Iterator[Recipe]:
    def row(
        system: str, config: str, baselines: Mapping[str, TrainingRun], **options: Any
    ) -> Recipe:
        return Recipe(system, TrainingRun(config, **options), baselines)

    # At equal compute in all: tasks alone share the steps, a modality costs a third of three.
    tasks, spoken = (*_EMOJI, "retrieval"), (*_EMOJI, "retrieval", "spoken")
    single = _one_modality("emoji", _MODALITIES, "retrieval")
    yield row("multi-task + multi-modal", "emoji", _alone("emoji", tasks, "steps=250") | single)
    apart = _alone("emoji_spoken", spoken, "steps=200")
    yield row("multi-task + multi-modal, five tasks", "emoji_spoken", apart | single)
    yield row("shared weights", "shared_weights", _alone("shared_weights", _EMOJI))
    layers = ("digit", "speaker", "task_1")
    yield row("shared layers", "shared_layers", _alone("shared_layers", layers))
    yield row("shared features", "shared_features", _HARD)
    random = {"as they were drawn": TrainingRun("shared_features_frozen", ("init_from=None",))}
    learned = {"how": "fit", "after": TrainingRun("shared_weights", how="fit")}
    yield row("shared features, frozen", "shared_features_frozen", _OWN | random, **learned)
    yield row("soft sharing, cross-stitch", "soft_cross_stitch", _HARD | _OWN)
    yield row("soft sharing, distance", "soft_distance", _OWN)
    for rule in ("mean", "weighted", "learned"):
        yield Recipe(
            f"independent training, fused by {rule}",
            TrainingRun("independent_image", how=rule, members=_MEMBERS),
            _LATE,
        )
    yield row("joint training", "joint_training", _LATE)
    labels = ("category", "subcategory")
    supervised = {"with labels": TrainingRun("independent_image")}
    yield row("cross-modal learning", "contrastive", supervised, zero_shot=labels)
    yield row("modality translation", "translation", {})
    yield row("early fusion, raw", "fusion_early_raw", _LATE)
    yield row("early fusion, tokens", "fusion_early", _LATE)
    yield row("middle fusion", "fusion_middle", _LATE)
    singles = {f"{m} alone": TrainingRun(f"independent_{m}") for m in _MODALITIES}
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
    unread = {"never saw the text": TrainingRun("written_words", ("model.encoders.text=None",))}
    yield row("image with text inside it", "written_words", unread, without=("text",))
    order = {"GRU over frames": TrainingRun("video_understanding_small", (_TEMPORAL,))}
    single = _one_modality("video_understanding_small", ("video", "text", "audio"))
    yield row("video understanding", "video_understanding_small", order | single)
    # A third of the steps each.
    clips = _alone("video_aligned", ("topic", "event", "where"), "balancing=equal", "steps=190")
    yield row("video understanding, aligned", "video_aligned", clips)
    short, unshared = "steps=600", "model.regularisers=()"
    yield Recipe(
        "speech recognition + synthesis",
        TrainingRun("emoji_speech", (short,)),
        {
            "nothing shared": TrainingRun("emoji_speech", (short, unshared)),
            "transcript alone": TrainingRun("emoji_speech", (short, unshared, "tasks.speech=None")),
            "speech alone": TrainingRun(
                "emoji_speech", (short, unshared, "tasks.transcript=None", "checkpoint.best=speech")
            ),
        },
    )
    both = ("boxes", "present_categories")
    yield row("classification + detection", "detect_and_classify", _alone(_DETECT, both))
    yield row("task weights, static", "weights_static", _EQUAL)
    yield row("task weights, performance", "weights_performance", _EQUAL, how="fit")
    yield row("task weights, learned", "weights_learned", _EQUAL)
    yield row("task weights, cross-validated", "weights_cross_validated", _EQUAL, how="cv")
    yield row("task weights, uncertainty", "weights_uncertainty", _EQUAL)
    yield row("task attention", "task_attention", _HARD)
    yield row("task attention, gates", "task_gates", _HARD)
    yield row("task attention, queries", "task_queries", _HARD)
    yield row("task relatedness", "task_relatedness", _EQUAL, how="fit")
    yield row("regularised multi-task", "regularised_tasks", _OWN)
    yield row("regularised multi-modal", "regularised_modalities", _JOINT | _LATE)
    for between in ("domains", "tasks", "modalities"):
        config = f"transfer_{between}"
        yield row(f"transfer between {between}", config, _transferred(config))
    for share, (both, alone) in CURVE.items():
        name = "few_labels" if share == OWN_SHARE else f"few_labels_{share}"
        yield Recipe(f"few labels, {share}%", both, {"category alone": alone}, name)
    films = _alone("many_tasks", _FILMS, "balancing=equal")
    yield row("many tasks, missing labels", "many_tasks", films)
    for name, sensors in _SCENARIOS.items():
        config = f"scenario_{name}"
        each = _one_modality(config, **sensors)
        yield row(f"synthetic: {name}", config, each, without=_SENSORS)
    said = ("transcript", "intent", "reply")
    yield row("synthetic: service", "scenario_service", _alone("scenario_service", said))


RECIPES: dict[str, Recipe] = {recipe.name or recipe.run.name: recipe for recipe in _entries()}


def parser() -> argparse.ArgumentParser:
    p = arguments(
        "recipes",
        "Trains the recipes of configs/ and their baselines; prints a Markdown table.",
        only="names parted by commas, such as fusion_early,joint_training",
        quick=QUICK,
        seeds="0",
        jobs=True,
    )
    p.add_argument("--workdir", default="runs/recipes", help="of runs that need a folder")
    p.add_argument("--plot", help="a picture of few labels: accuracy over the share of them")
    return p


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    names = names_of(options.only, RECIPES, "recipe")
    prepare_jax()

    board, folder = Board(options.json), Path(options.workdir)
    steps = QUICK if options.quick else None
    seeds = seeds_of(options.seeds, options.quick)
    plan = {name: [RECIPES[name].run, *RECIPES[name].baselines.values()] for name in names}
    with board.helped("mtmm_jax.benchmarks.recipes", argv, options.jobs):
        for number, (name, runs) in enumerate(plan.items(), start=1):
            for run in runs:
                title = f"{number}/{len(plan)} {name}: {run.name} {' '.join(run.changes)}"
                train = functools.partial(rows_of, run, steps=steps, folder=folder)
                board.fill(title, key_of(run, steps), seeds, train)
    print(table(board, [RECIPES[name] for name in names], steps))
    if options.plot:
        curve(board, options.plot, steps)
    return 0


if __name__ == "__main__":
    sys.exit(main())
