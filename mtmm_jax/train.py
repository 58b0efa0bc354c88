"""`python -m mtmm_jax.train --config emoji --workdir runs/emoji`: a config, a run, a report."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mtmm_jax.command import console, guarded, prepare_jax


def parser() -> argparse.ArgumentParser:
    from mtmm_jax.devices.processes import options

    p = argparse.ArgumentParser(
        prog="python -m mtmm_jax.train",
        description="Trains a config; resumes where a run of the same config stopped.",
        epilog="Any value of the config is set by --config.section.key=value, for example "
        "--config.optimizer.learning_rate=3e-4 or --config.balancing=pcgrad; "
        "--config.tasks.year=None leaves a task out.",
    )
    p.add_argument("--config", required=True, help="a config file, or a name such as emoji")
    p.add_argument("--workdir", help="the run's folder: checkpoints, metrics, report")
    p.add_argument(
        "--dry_run",
        action="store_true",
        help="print parameters, tasks x modalities and the memory estimate, and stop",
    )
    p.add_argument(
        "--profile",
        metavar="steps=10:20",
        help="trace these steps into WORKDIR/profile, and tell what share of the peak they reach",
    )
    p.add_argument(
        "--peak",
        type=float,
        help="operations a second of one device, such as 989e12, where it is not known or wrong",
    )
    options(p)
    return p


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    arguments, overrides = parser().parse_known_args(argv)
    prepare_jax()

    from mtmm_jax import training
    from mtmm_jax.devices import parallel
    from mtmm_jax.registry import ConfigError
    from mtmm_jax.training import wandb_run
    from mtmm_jax.training.peaks import peak
    from mtmm_jax.training.profiling import Window

    parallel.initialize(arguments.coordinator, arguments.processes, arguments.process)
    config = training.load(arguments.config)
    with config.unlocked():
        config.wandb = config.get("wandb")
    config = training.apply_overrides(config, overrides)
    with config.unlocked():
        figures_to = wandb_run.check(config.wandb)
        del config.wandb  # where metrics go is no part of the training
    if not arguments.workdir and not arguments.dry_run:
        raise ConfigError("--workdir: is missing; name the run's folder, such as runs/emoji")
    if arguments.peak is not None:
        peak(given=arguments.peak)
    window = Window.of(arguments.profile, config.steps) if arguments.profile else None
    experiment = training.assemble(config)
    experiment.check_memory()
    if arguments.dry_run:
        from mtmm_jax.training.tables import lowered_step, memory_table

        out = _leading(console())
        describe(experiment, out)
        lowered = lowered_step(experiment)
        out.print(memory_table(experiment, lowered.compile()))
        out.print(step_speed(experiment, lowered, None, arguments.peak), highlight=False)
        return 0
    fit(experiment, arguments.workdir, window, arguments.peak, figures_to)
    return 0


def step_speed(experiment: Any, lowered: Any, seconds: float | None, given: float | None) -> str:
    """Operations of a step and, where it was timed, their share of the peak, in words."""
    from mtmm_jax.analysis.cost import operations
    from mtmm_jax.training.peaks import peak, speed

    count = operations(lowered)
    if count is not None and not isinstance(experiment.devices, int):
        count /= experiment.devices.mesh.size  # traced for the whole mesh
    return speed(count, seconds, peak(given=given))


def _leading(out: Any) -> Any:
    """The console, silent on all processes but the first."""
    from mtmm_jax.devices import processes

    out.quiet = not processes.is_primary()
    return out


def describe(experiment: Any, out: Any = None) -> None:
    """The parameter table, on a mesh how it is divided, and the task x modality matrix."""
    from mtmm_jax.data.pipeline.source import split_sizes
    from mtmm_jax.training.tables import parameter_table, partition_table, task_table

    out = out or console()
    if experiment.source is not None:
        sizes = split_sizes(experiment.source)
        used = ", ".join(f"{split} {count:,}" for split, count in sizes.items())
        out.print(f"rows: {used}", highlight=False)
    out.print(parameter_table(experiment.shapes.params))
    if divided := partition_table(experiment):
        out.print(divided)
    out.print(task_table(experiment.model))


def fit(
    experiment: Any,
    path: str | Path,
    profile: Any = None,
    most: float | None = None,
    wandb: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Trains, or resumes training, in a folder; evaluates, reports, and returns the results.

    Several processes call it alike, with a folder that all of them see; the first one writes.

    Args:
        experiment: of `assemble`.
        path: the folder.
        profile: the steps to trace, a `profiling.Window`.
        most: operations a second that a device can do, where the table of `peaks` does not say.
        wandb: what `wandb_run.check` gave: metrics go to Weights & Biases as well.
    """
    from mtmm_jax.devices import processes
    from mtmm_jax.store.workdir import Workdir

    workdir, out = Workdir(Path(path)), _leading(console())
    if not processes.broadcast_from_first(workdir.started):
        experiment.check_shapes()
    with contextlib.ExitStack() as held:

        def hold() -> None:
            if stale := held.enter_context(workdir.lock()):
                out.print(stale, highlight=False, markup=False)

        processes.on_primary(hold, "--workdir")
        held.enter_context(processes.together())  # also of what follows training
        return _fit(experiment, workdir, out, profile, most, wandb)


def _fit(
    experiment: Any,
    workdir: Any,
    out: Any,
    profile: Any,
    most: float | None,
    wandb: dict[str, Any] | None,
) -> dict[str, Any]:
    """`fit` in a folder that is held."""
    from mtmm_jax.devices import processes
    from mtmm_jax.objectives import relatedness
    from mtmm_jax.optim import pruning
    from mtmm_jax.store.checkpoints import Checkpoints
    from mtmm_jax.store.files import finite
    from mtmm_jax.training import linear_models, profiling, wandb_run
    from mtmm_jax.training import results as final
    from mtmm_jax.training.logs import results_table
    from mtmm_jax.training.loop import train
    from mtmm_jax.training.stopping import Progress
    from mtmm_jax.training.tables import lowered_step
    from mtmm_jax.transfer import pretrained

    started = time.monotonic()
    experiment = relatedness.begin(experiment, workdir, out)
    processes.on_primary(lambda: pretrained.keep_digests(experiment, workdir), "model.encoders")
    processes.on_primary(lambda: wandb_run.keep(workdir.path, wandb), "--workdir")
    describe(experiment, out)
    checkpoints = Checkpoints(workdir.checkpoints, experiment.config["checkpoint"]["keep"])
    compiles = profiling.Compiles()
    meter = profiling.Meter(compiles, profile, workdir.path / "profile", out.print)
    try:
        with compiles, contextlib.closing(meter), processes.together():
            train(experiment, workdir, checkpoints, out, meter)
            if not processes.broadcast_from_first(workdir.results.exists()):
                best = processes.broadcast_from_first(checkpoints.best())
                state, _ = checkpoints.restore(best, experiment.shapes, experiment.devices)
                out.print(f"evaluating the best checkpoint, step {best}")
                config = experiment.config
                if prune := pruning.read(config["optimizer"].get("prune"), config["steps"]):
                    out.print(pruning.sparsity_line(state.variables["params"], prune))
                last = processes.broadcast_from_first(checkpoints.latest())
                progress = Progress.of(checkpoints.progress(last))
                results, states = final.final_results(experiment, state.variables)
                if linear := linear_models.results(workdir, state.variables, experiment.model):
                    results["linear"] = linear
                results["training"] = final.course(experiment, progress, best, last)
                if processes.is_primary():
                    final.add_remarks(experiment, workdir, results)
                    final.save_examples(experiment, workdir, states)
                    seconds = time.monotonic() - started
                    workdir.write(final.RUN, final.facts(experiment, workdir, seconds))
                    workdir.write("results.json", finite(results))
    finally:
        checkpoints.close()
    from mtmm_jax.analysis import write_report  # with pyplot, for which no first step waits

    processes.on_primary(lambda: write_report(workdir), "report")
    results = workdir.read("results.json")
    for split in final.SPLITS:
        certainty = results.get("intervals", {}).get(split)
        out.print(results_table(split, final.comparison(results, split), certainty))
    for remark in results.get("remarks", ()):
        out.print(remark, highlight=False, markup=False, soft_wrap=True)
    out.print(f"checkpoints  {workdir.checkpoints}", soft_wrap=True)
    out.print(f"results      {workdir.results}", soft_wrap=True)
    out.print(f"report       {workdir.report}", soft_wrap=True)
    out.print(compiles.report(), highlight=False, soft_wrap=True)
    if meter.step_seconds is not None:
        lowered = lowered_step(experiment)
        speed = step_speed(experiment, lowered, meter.step_seconds, most)
        out.print(speed, highlight=False, soft_wrap=True)
    out.print(f"done in {time.monotonic() - started:.0f} s")
    return results


if __name__ == "__main__":
    sys.exit(main())
