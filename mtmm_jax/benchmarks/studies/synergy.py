"""Accuracy of every fusion on XOR of two modalities, from the generator.

    python -m mtmm_jax.benchmarks.studies.synergy --json synergy.json --plot synergy.png

The target is 1 where the hidden signs of both modalities agree in an odd number of places; either
modality alone says nothing about it. Decision rules that add up logits cannot represent it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mtmm_jax.benchmarks.tables.bar_charts import bars, panels, save
from mtmm_jax.benchmarks.tables.leaderboard import entries
from mtmm_jax.benchmarks.tables.result_table import Board, arguments, seeds_of, spread
from mtmm_jax.command import console, guarded, prepare_jax
from mtmm_jax.registry import ConfigError

ADDITIVE = ("decision mean", "decision weighted", "decision product")


def config_of(changes: Mapping[str, Any], steps: int) -> Any:
    from mtmm_jax import training

    config = training.load("generator")
    with config.unlocked(), config.ignore_type():
        config.steps = steps
        config.model.fusion = changes["fusion"]
    return config


def plot(rows: Sequence[Mapping[str, Any]], path: str) -> None:
    """Chance and the best reachable as lines."""
    values: dict[str, list[float]] = {}
    for row in rows:
        values.setdefault(row["entry"], []).append(row["accuracy"])
    figure, (axes,) = panels(1, len(values))
    bars(axes, values, ADDITIVE)
    axes.axvline(0.5, color="grey", linestyle=":")
    axes.axvline(rows[0]["ceiling"], color="grey", linestyle="--")
    axes.set_xlim(0.4, 1.02)
    axes.set_xlabel("accuracy on XOR; dotted: chance, dashed: the best reachable")
    axes.set_title("orange: additive in the logits", fontsize=9)
    save(figure, path)


def parser() -> argparse.ArgumentParser:
    about = "Trains every fusion on a target that only two modalities together tell."
    p = arguments("synergy", about)
    p.add_argument("--steps", type=int, default=600, help="of each run (default: 600)")
    p.add_argument("--plot", help="a picture, such as synergy.png")
    return p


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    prepare_jax()

    from rich.progress import track
    from rich.table import Table
    from rich.text import Text

    from mtmm_jax.benchmarks.tables.short_runs import ShortRun
    from mtmm_jax.data.sources.generator import ceilings

    out = console()
    board = Board(options.json)
    plan = {k: v for k, v in entries(()).items() if "fusion" in v}
    for name in track(plan, description="synergy", console=out):
        todo = board.left(seeds_of(options.seeds), entry=name, steps=options.steps)
        if not todo:
            continue
        try:
            short = ShortRun(config_of(plan[name], options.steps))
        except ConfigError as error:
            out.print(f"{name}: {error}", highlight=False)
            continue
        data = short.experiment.config["data"]
        ceiling = ceilings(synergy=data["synergy"], noise=data["noise"])["synergy"]
        for seed in todo:
            row = short.row(seed)
            board.add(
                {
                    "entry": name,
                    "steps": options.steps,
                    "seed": seed,
                    "accuracy": row["test"]["synergy"],
                    "ceiling": round(ceiling, 4),
                    "parameters": row["parameters"],
                }
            )
    rows = board.find(steps=options.steps)
    table = Table(title=f"accuracy on XOR, test, {options.steps} steps")
    for column in ("fusion", "accuracy", "least", "parameters"):
        table.add_column(column)
    by_name: dict[str, list[Any]] = {}
    for row in rows:
        by_name.setdefault(row["entry"], []).append(row)
    order = sorted(by_name, key=lambda n: -np.mean([row["accuracy"] for row in by_name[n]]))
    for name in order:
        values = [row["accuracy"] for row in by_name[name]]
        style = "bold" if name in ADDITIVE else ""
        count = f"{by_name[name][0]['parameters']:,}"
        table.add_row(Text(name, style=style), spread(values), f"{min(values):.3f}", count)
    out.print(table)
    if options.plot:
        plot(rows, options.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
