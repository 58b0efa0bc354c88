"""Accuracy against width: how narrow a modality's way into fusion may be, by each bottleneck.

    python -m mtmm_jax.benchmarks.studies.width --config digits --json width.json --plot width.png
    python -m mtmm_jax.benchmarks.studies.width --config generator --sizes 1,2 --entries linear,pca

Every modality passes the bottleneck of configs/bottlenecks, which learns at the rates that
stand there, narrowed to k numbers; gates, which have no k, are described by the share of features
that they leave open, at some weights of their loss. The line without a bottleneck is the config as
it is. Rows that stand in the JSON file are not run again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mtmm_jax.benchmarks.tables.result_table import Board, arguments, seeds_of, spread
from mtmm_jax.command import console, guarded, prepare_jax
from mtmm_jax.registry import ConfigError, choose

NONE = "none"
SIZES = "1,2,4,8,16"
WEIGHTS = "0.01,0.03,0.1,0.3"  # of the gates' loss
QUICK = 10  # steps


def settings(
    entries: Sequence[str], sizes: Sequence[int], weights: Sequence[float]
) -> list[tuple[str, float, Any]]:
    """`(entry, its number, what it changes)`: a size, or the weight of the gates' loss."""
    from mtmm_jax import training

    found: list[tuple[str, float, Any]] = [(NONE, 0, None)]
    for entry in entries:
        config = training.load(f"bottleneck_{entry}")
        section, rates = config.model.bottleneck.all.to_dict(), config.optimizer.get("rates")
        key, numbers = ("weight", weights) if entry == "gates" else ("k", sizes)
        found += [(entry, number, ({**section, key: number}, rates)) for number in numbers]
    return found


def config_of(name: str, change: Any, overrides: Sequence[str], steps: int | None) -> Any:
    """The config with a bottleneck before every fusion, and the rates at which it learns."""
    from mtmm_jax import training

    config = training.apply_overrides(training.load(name), overrides)
    with config.unlocked(), config.ignore_type():
        config.steps = steps or config.steps
        if change is not None:
            bottleneck, rates = change
            config.model.bottleneck = {"all": bottleneck}
            if rates:
                config.optimizer.rates = [*config.optimizer.get("rates", ()), *rates]
    return config


def open_share(variables: Any) -> float | None:
    """The mean over modalities of the share of features whose gate is open; None without gates."""
    from mtmm_jax.fusion.bottlenecks import settled

    gated = [
        tree for tree in variables["params"].get("bottleneck", {}).values() if "features" in tree
    ]
    if not gated:
        return None
    both = [settled(tree["features"]) * settled(tree["modality"]) for tree in gated]
    return float(np.mean([np.mean(np.asarray(gate) > 0) for gate in both]))


def table(rows: Sequence[Mapping[str, Any]], task: str) -> Any:
    """A line for each entry and number, mean and deviation over its seeds."""
    from rich.table import Table

    out = Table(title=f"{task}, test")
    for name in ("bottleneck", "k or weight", "seeds", "width left", task):
        out.add_column(name, justify="left" if name == "bottleneck" else "right")
    for entry, number in dict.fromkeys((row["entry"], row["number"]) for row in rows):
        mine = [row for row in rows if (row["entry"], row["number"]) == (entry, number)]
        left = np.mean([row["left"] for row in mine])
        shown = "-" if entry == NONE else f"{number:g}"
        metrics = spread([row["metric"] for row in mine])
        out.add_row(entry, shown, str(len(mine)), f"{left:.1f}", metrics)
    return out


def plot(rows: Sequence[Mapping[str, Any]], task: str, path: str) -> None:
    """A line for each entry over the width that is left; dashed: without a bottleneck."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    for entry in dict.fromkeys(row["entry"] for row in rows):
        mine = [row for row in rows if row["entry"] == entry]
        if entry == NONE:
            whole = float(np.mean([row["metric"] for row in mine]))
            axes.axhline(whole, color="grey", linestyle="--", label=f"none, {mine[0]['left']:g}")
            continue
        points = []
        for number in dict.fromkeys(row["number"] for row in mine):
            here = [row for row in mine if row["number"] == number]
            metrics = [row["metric"] for row in here]
            points.append((np.mean([r["left"] for r in here]), np.mean(metrics), np.std(metrics)))
        x, y, error = np.array(sorted(points)).T
        axes.errorbar(np.maximum(x, 0.5), y, error, marker="o", markersize=4, label=entry)
    axes.set_xscale("log", base=2)
    axes.set_xlabel("numbers that each modality brings to fusion")
    axes.set_ylabel(f"{task}, test")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def parser() -> argparse.ArgumentParser:
    p = arguments(
        "width",
        "Accuracy against the width of the modalities' way into fusion.",
        quick=QUICK,
        config_flags=True,
    )
    p.add_argument("--config", default="digits", help="a config file, or a name (default: digits)")
    p.add_argument("--task", help="whose headline counts; the first of the config by default")
    p.add_argument("--entries", help="of fusion.BOTTLENECKS, parted by commas (default: all)")
    p.add_argument("--sizes", default=SIZES, help=f"k, parted by commas (default: {SIZES})")
    p.add_argument("--weights", default=WEIGHTS, help=f"of the gates' loss (default: {WEIGHTS})")
    p.add_argument("--plot", help="a PNG file for the picture")
    return p


def _numbers(text: str, kind: type, where: str) -> list[Any]:
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"{where}: {text!r} is no list such as 1,2,4") from error


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    options, overrides = parser().parse_known_args(argv)
    prepare_jax()

    from rich.progress import track

    from mtmm_jax.benchmarks.tables.short_runs import ShortRun
    from mtmm_jax.fusion import BOTTLENECKS

    entries = options.entries.split(",") if options.entries else list(BOTTLENECKS)
    for entry in entries:
        choose(entry, BOTTLENECKS, "--entries", "bottleneck")
    sizes = _numbers(options.sizes, int, "--sizes")
    weights = _numbers(options.weights, float, "--weights")
    steps = QUICK if options.quick else None
    seeds = seeds_of(options.seeds, options.quick)
    plain = config_of(options.config, None, overrides, steps)
    task = choose(options.task or next(iter(plain.tasks)), plain.tasks, "--task", "task")
    base = {"config": options.config, "overrides": overrides, "steps": plain.steps, "task": task}
    board, width = Board(options.json), plain.model.width
    plan = settings(entries, sizes, weights)
    for entry, number, change in track(plan, description="width", console=console()):
        key = {**base, "entry": entry, "number": number}
        todo = board.left(seeds, **key)
        short = ShortRun(config_of(options.config, change, overrides, steps)) if todo else None
        for seed in todo:
            variables = short.train(seed)
            metric = short.metrics(short.evaluate(variables, "test"))[task]
            share = open_share(variables)
            left = {NONE: width}.get(entry, number) if share is None else share * width
            metrics = {"metric": round(float(metric), 4), "left": round(float(left), 3)}
            board.add({**key, "seed": seed, **metrics})
    rows = board.find(**base)
    console().print(table(rows, task))
    if options.plot:
        plot(rows, task, str(Path(options.plot)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
