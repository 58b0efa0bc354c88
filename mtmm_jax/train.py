"""`python -m mtmm_jax.train --config emoji --workdir runs/emoji`: a config, a run, a report."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

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
    started = time.monotonic()
    prepare_jax()

    from mtmm_jax import training
    from mtmm_jax.analysis import write_report
    from mtmm_jax.registry import ConfigError
    from mtmm_jax.training import results as final
    from mtmm_jax.training.checkpoints import Checkpoints
    from mtmm_jax.training.experiment import memory_table, parameter_table, task_table
    from mtmm_jax.training.logs import results_table
    from mtmm_jax.training.loop import train
    from mtmm_jax.training.workdir import Workdir

    out = console()
    config = training.apply_overrides(training.load(arguments.config), overrides)
    if not arguments.workdir and not arguments.dry_run:
        raise ConfigError("--workdir: is missing; name the run's folder, such as runs/emoji")
    experiment = training.assemble(config)

    import jax

    shapes = jax.eval_shape(experiment.init)
    out.print(parameter_table(shapes.params))
    out.print(task_table(experiment.model))
    if arguments.dry_run:
        out.print(memory_table(experiment))
        return 0

    workdir = Workdir(Path(arguments.workdir))
    workdir.claim(experiment.config, experiment.source.spec, experiment.source.assets)
    checkpoints = Checkpoints(workdir.checkpoints, experiment.config["checkpoint"]["keep"])
    try:
        train(experiment, workdir, checkpoints, out)
        if not workdir.results.exists():
            state, _ = checkpoints.restore(checkpoints.best(), shapes)
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
    return 0


if __name__ == "__main__":
    sys.exit(main())
