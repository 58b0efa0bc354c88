"""What an absent modality costs, with and without modality dropout in training.

    python -m mtmm_jax.benchmarks.missing --config emoji --task category --json missing.json

For each way to meet a missing modality (`model.missing`) and each rate of modality dropout: the
figure with everything, and with any one modality taken away.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from mtmm_jax.benchmarks.leaderboard import Board
from mtmm_jax.benchmarks.seeds import seeds_of
from mtmm_jax.command import console, guarded, prepare_jax
from mtmm_jax.registry import choose


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m mtmm_jax.benchmarks.missing",
        description="What an absent modality costs, with and without modality dropout.",
        epilog="Values of the config are set by --config.section.key=value, as in training.",
    )
    p.add_argument("--config", default="emoji", help="a config file, or a name (default: emoji)")
    p.add_argument("--task", default="category", help="whose headline counts (default: category)")
    p.add_argument("--dropout", type=float, default=0.3, help="the rate beside 0 (default: .3)")
    p.add_argument("--ways", nargs="+", default=["mask"], help="of model.missing (default: mask)")
    p.add_argument("--seeds", default="0,1,2", help="such as 0,1,2 (default)")
    p.add_argument("--json", help="rows are kept here; those that stand in it are not run again")
    return p


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    options, overrides = parser().parse_known_args(argv)
    prepare_jax()

    from rich.progress import track

    from mtmm_jax import training
    from mtmm_jax.benchmarks.short_runs import ShortRun
    from mtmm_jax.fusion import MISSING

    for way in options.ways:
        choose(way, ("mask", *MISSING), "--ways", "way")
    board = Board(options.json)
    settings = [(way, rate) for way in options.ways for rate in (0.0, options.dropout)]
    for way, rate in track(settings, description="missing", console=console()):
        config = training.apply_overrides(training.load(options.config), overrides)
        with config.unlocked(), config.ignore_type():
            config.model.missing = way
            config.model.modality_dropout = rate
        choose(options.task, config.tasks, "--task", "task")
        key = {"config": options.config, "steps": config.steps, "missing": way, "dropout": rate}
        todo = board.left(seeds_of(options.seeds), **key)
        short = ShortRun(config) if todo else None
        for seed in todo:
            variables = short.train(seed)
            names = tuple(short.experiment.model.encoders)
            seen = {"all": None} | {f"no {m}": [n for n in names if n != m] for m in names}
            figures = {}
            for label, only in seen.items():
                results = short.evaluate(variables, "test", only)
                figures[label] = round(short.figures(results)[options.task], 4)
            board.add({**key, "seed": seed, "task": options.task, "figures": figures})
    console().print(table([r for r in board.rows if r["config"] == options.config], options.task))
    return 0


def table(rows: Sequence[dict[str, Any]], task: str) -> Any:
    """A line for each setting: the figure with everything, and the loss without each modality."""
    from rich.table import Table

    out = Table(title=f"{task}, test; then what is lost without one modality: mean ± sd")
    labels = list(rows[0]["figures"])
    for name in ("missing", "dropout", "seeds", *labels, "worst loss"):
        out.add_column(name)
    for way, rate in dict.fromkeys((row["missing"], row["dropout"]) for row in rows):
        mine = [row["figures"] for row in rows if (row["missing"], row["dropout"]) == (way, rate)]
        cells = [_spread([f["all"] for f in mine])]
        lost = {label: [f["all"] - f[label] for f in mine] for label in labels[1:]}
        cells += [_spread(values) for values in lost.values()]
        worst = max(float(np.mean(values)) for values in lost.values())
        out.add_row(way, f"{rate:g}", str(len(mine)), *cells, f"{worst:.3f}")
    return out


def _spread(values: Sequence[float]) -> str:
    return f"{np.mean(values):.3f} ± {np.std(values):.3f}"


if __name__ == "__main__":
    sys.exit(main())
