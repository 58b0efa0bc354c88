"""One config over several seeds: means and spreads, next to each modality alone and the trivial.

    python -m mtmm_jax.benchmarks.tables.seeds --config emoji --workdir runs/seeds --seeds 0,1,2

Each seed is an ordinary run in a folder of its own; running again resumes where it stopped.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mtmm_jax.benchmarks.tables.result_table import seeds_of, spread
from mtmm_jax.command import console, guarded, prepare_jax


def parser(
    name: str = "seeds",
    description: str = "Trains a config with several seeds and prints means and spreads.",
) -> argparse.ArgumentParser:
    """The arguments of every command that trains a config several times."""
    p = argparse.ArgumentParser(
        prog=f"python -m mtmm_jax.benchmarks.{name}",
        description=description,
        epilog="Values of the config are set by --config.section.key=value, as in training.",
    )
    p.add_argument("--config", required=True, help="a config file, or a name such as emoji")
    p.add_argument("--workdir", required=True, help="the folder of the runs")
    p.add_argument("--seeds", default="0,1,2", help="such as 0,1,2 (default)")
    p.add_argument("--json", help="a file for all metrics of all seeds")
    return p


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    p = parser()
    p.add_argument("--plot", help="a PNG file: the means as bars")
    arguments, overrides = p.parse_known_args(argv)
    prepare_jax()

    from mtmm_jax import training
    from mtmm_jax.store.files import write
    from mtmm_jax.train import fit
    from mtmm_jax.training.results import comparison

    seeds = seeds_of(arguments.seeds)
    runs, headlines = {}, {}
    for seed in seeds:
        config = training.apply_overrides(training.load(arguments.config), overrides)
        config.seed = seed
        experiment = training.assemble(config)
        headlines = {name: task.headline for name, task in experiment.model.tasks.items()}
        runs[seed] = fit(experiment, Path(arguments.workdir) / str(seed))
    columns = [comparison(results, "test") for results in runs.values()]
    console().print(summary(columns, f"test, {len(seeds)} seeds: mean ± standard deviation"))
    if arguments.json:
        write(Path(arguments.json), (json.dumps(runs, indent=1) + "\n").encode())
    if arguments.plot:
        plot(columns, headlines, arguments.plot)
    return 0


def plot(columns: Sequence[Mapping[str, Any]], headlines: Mapping[str, str], path: str) -> None:
    """Bars of the mean over seeds of each task's headline; `columns` as for `summary`."""
    from mtmm_jax.analysis import plots
    from mtmm_jax.benchmarks.tables.bar_charts import save

    save(plots.comparison(means(columns, headlines), headlines), path)


def means(
    columns: Sequence[Mapping[str, Any]], headlines: Mapping[str, str]
) -> dict[str, dict[str, dict[str, float]]]:
    """`{column: {task: {headline: mean}}}` over seeds, without tasks that a column lacks."""
    found: dict[str, dict[str, dict[str, float]]] = {name: {} for name in columns[0]}
    for name, task, metric in ((n, *item) for n in found for item in headlines.items()):
        values = [column[name].get(task, {}).get(metric) for column in columns]
        known = [value for value in values if value is not None]
        if known:
            found[name][task] = {metric: sum(known) / len(known)}
    return found


def summary(columns: Sequence[Mapping[str, Any]], title: str) -> Any:
    """The table of `{column: {task: {metric: value}}}`, one mapping a seed."""
    from rich.table import Table

    table = Table(title=title)
    table.add_column("task")
    table.add_column("metric")
    for name in columns[0]:
        table.add_column(name, justify="right")
    for task, metrics in columns[0]["all modalities"].items():
        for i, metric in enumerate(metrics):
            cells = []
            for name in columns[0]:
                values = [c[name].get(task, {}).get(metric) for c in columns]
                cells.append(spread(values))
            table.add_row(task if i == 0 else "", metric, *cells)
        table.add_section()
    return table


if __name__ == "__main__":
    sys.exit(main())
