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
    from mtmm_jax.processes import options

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
    options(p)
    return p


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    arguments, overrides = parser().parse_known_args(argv)
    prepare_jax()

    from mtmm_jax import parallel, training
    from mtmm_jax.registry import ConfigError

    parallel.initialize(arguments.coordinator, arguments.processes, arguments.process)
    config = training.apply_overrides(training.load(arguments.config), overrides)
    if not arguments.workdir and not arguments.dry_run:
        raise ConfigError("--workdir: is missing; name the run's folder, such as runs/emoji")
    experiment = training.assemble(config)
    if arguments.dry_run:
        from mtmm_jax.training.tables import memory_table

        out = _leading(console())
        describe(experiment, out)
        out.print(memory_table(experiment))
        return 0
    fit(experiment, arguments.workdir)
    return 0


def _leading(out: Any) -> Any:
    """The console, silent on all processes but the first."""
    from mtmm_jax import processes

    out.quiet = not processes.leads()
    return out


def describe(experiment: Any, out: Any = None) -> None:
    """The parameter table, on a mesh how it is divided, and the task x modality matrix."""
    from mtmm_jax.training.tables import parameter_table, partition_table, task_table

    out = out or console()
    out.print(parameter_table(experiment.shapes.params))
    if divided := partition_table(experiment):
        out.print(divided)
    out.print(task_table(experiment.model))


def fit(experiment: Any, path: str | Path) -> dict[str, Any]:
    """Trains, or goes on training, in a folder; evaluates, reports, and returns the results.

    Several processes call it alike, with a folder that all of them see; the first one writes.
    """
    from mtmm_jax import processes
    from mtmm_jax.analysis import write_report
    from mtmm_jax.training import results as final
    from mtmm_jax.training.checkpoints import Checkpoints
    from mtmm_jax.training.logs import results_table
    from mtmm_jax.training.loop import train
    from mtmm_jax.training.workdir import Workdir

    started = time.monotonic()
    out = _leading(console())
    workdir = Workdir(Path(path))
    source = experiment.source
    processes.led(lambda: workdir.claim(experiment.config, source.spec, source.assets), "--workdir")
    describe(experiment, out)
    checkpoints = Checkpoints(workdir.checkpoints, experiment.config["checkpoint"]["keep"])
    try:
        with processes.together():
            train(experiment, workdir, checkpoints, out)
            if not processes.told(workdir.results.exists()):
                best = processes.told(checkpoints.best())
                state, _ = checkpoints.restore(best, experiment.shapes, experiment.devices)
                out.print(f"evaluating the best checkpoint, step {best}")
                results, states = final.final_results(experiment, state.variables)
                if processes.leads():
                    final.save_examples(experiment, workdir, states)
                    workdir.write("results.json", final.finite(results))
    finally:
        checkpoints.close()
    processes.led(lambda: write_report(workdir), "report")
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
