"""`python -m mtmm_jax.train --config emoji --workdir runs/emoji`: a config, a run, a report."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mtmm_jax.command import console, guarded, prepare_jax


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m mtmm_jax.train",
        description="Trains a config; goes on where a run of the same config stopped.",
        epilog="Any value of the config is set by --config.section.key=value, for example "
        "--config.optimizer.learning_rate=3e-4 or --config.balancing=pcgrad; "
        "--config.tasks.year=None leaves a task out.",
    )
    p.add_argument("--config", required=True, help="a config file, or a name such as emoji")
    p.add_argument("--workdir", help="the run's folder: checkpoints, figures, report")
    p.add_argument(
        "--dry_run",
        action="store_true",
        help="print parameters, tasks x modalities and the memory estimate, and stop",
    )
    return p


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    arguments, overrides = parser().parse_known_args(argv)
    prepare_jax()

    from mtmm_jax import training
    from mtmm_jax.registry import ConfigError

    config = training.apply_overrides(training.load(arguments.config), overrides)
    if not arguments.workdir and not arguments.dry_run:
        raise ConfigError("--workdir: is missing; name the run's folder, such as runs/emoji")
    experiment = training.assemble(config)
    if arguments.dry_run:
        from mtmm_jax.training.experiment import memory_table

        describe(experiment)
        console().print(memory_table(experiment))
        return 0
    fit(experiment, arguments.workdir)
    return 0


def describe(experiment: Any) -> None:
    """The parameter table and the task x modality matrix."""
    from mtmm_jax.training.experiment import parameter_table, task_table

    console().print(parameter_table(experiment.shapes.params))
    console().print(task_table(experiment.model))


def fit(experiment: Any, path: str | Path) -> dict[str, Any]:
    """Trains, or goes on training, in a folder; evaluates, reports, and returns the results."""
    from mtmm_jax.analysis import write_report
    from mtmm_jax.training import results as final
    from mtmm_jax.training.checkpoints import Checkpoints
    from mtmm_jax.training.logs import results_table
    from mtmm_jax.training.loop import train
    from mtmm_jax.training.workdir import Workdir

    started = time.monotonic()
    out = console()
    workdir = Workdir(Path(path))
    workdir.claim(experiment.config, experiment.source.spec, experiment.source.assets)
    describe(experiment)
    checkpoints = Checkpoints(workdir.checkpoints, experiment.config["checkpoint"]["keep"])
    try:
        train(experiment, workdir, checkpoints, out)
        if not workdir.results.exists():
            state, _ = checkpoints.restore(checkpoints.best(), experiment.shapes)
            out.print(f"evaluating the best checkpoint, step {int(state.step)}")
            results, states = final.final_results(experiment, state.variables)
            final.save_examples(experiment, workdir, states)
            workdir.write("results.json", final.finite(results))
    finally:
        checkpoints.close()
    write_report(workdir)
    results = workdir.read("results.json")
    for split in final.SPLITS:
        out.print(results_table(split, final.comparison(results, split)))
    out.print(f"checkpoints  {workdir.checkpoints}", soft_wrap=True)
    out.print(f"results      {workdir.results}", soft_wrap=True)
    out.print(f"report       {workdir.report}", soft_wrap=True)
    out.print(f"done in {time.monotonic() - started:.0f} s")
    return results


if __name__ == "__main__":
    sys.exit(main())
