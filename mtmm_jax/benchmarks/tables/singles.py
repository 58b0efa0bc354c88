"""All tasks of a config in one model, next to a model of its own for each, over several seeds.

    python -m mtmm_jax.benchmarks.tables.singles --config films --workdir runs/singles --seeds 0,1,2

Each is an ordinary run in a folder of its own; running again resumes where it stopped.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mtmm_jax.benchmarks.tables.result_table import seeds_of, spread
from mtmm_jax.benchmarks.tables.seeds import parser
from mtmm_jax.command import console, guarded, prepare_jax

TOGETHER = "together"


ABOUT = "Trains all tasks together and each alone, and prints means and spreads."


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    arguments, overrides = parser("singles", ABOUT).parse_known_args(argv)
    prepare_jax()

    from mtmm_jax import training
    from mtmm_jax.benchmarks.speed.timing import write_json
    from mtmm_jax.train import fit
    from mtmm_jax.training.results import comparison

    seeds = seeds_of(arguments.seeds)
    rows = []
    for seed in seeds:
        names = tuple(training.load(arguments.config).tasks)
        for alone in (None, *names):
            config = training.apply_overrides(training.load(arguments.config), overrides)
            config.seed = seed
            if alone:
                for name in names:
                    if name != alone:
                        del config.tasks[name]
                with config.ignore_type():
                    config.balancing = "equal"  # one task has nothing to be weighed against
            label = alone or TOGETHER
            results = fit(training.assemble(config), Path(arguments.workdir) / label / str(seed))
            for task, metrics in comparison(results, "test")["all modalities"].items():
                rows.append({"trained": label, "seed": seed, "task": task, **metrics})
    console().print(table(rows, len(seeds)))
    if arguments.json:
        write_json(arguments.json, rows)
    return 0


def table(rows: Sequence[Mapping[str, Any]], seeds: int) -> Any:
    """A line for each metric of each task: trained together, and alone."""
    from rich.table import Table

    out = Table(title=f"test, {seeds} seed(s): mean ± standard deviation")
    for name in ("task", "metric", TOGETHER, "alone"):
        out.add_column(name)
    for task in dict.fromkeys(row["task"] for row in rows):
        mine = [row for row in rows if row["task"] == task]
        for metric in (key for key in mine[0] if key not in ("trained", "seed", "task")):
            cells = []
            for label in (TOGETHER, task):
                values = [row[metric] for row in mine if row["trained"] == label]
                cells.append(spread(values))
            out.add_row(task, metric, *cells)
        out.add_section()
    return out


if __name__ == "__main__":
    sys.exit(main())
