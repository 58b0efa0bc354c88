"""Word and character error rates of a run's synthesised speech under its own recogniser.

python -m mtmm_jax.benchmarks.studies.speech --workdir runs/emoji_speech --waves runs/spoken
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from mtmm_jax.command import console, guarded, prepare_jax


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m mtmm_jax.benchmarks.studies.speech",
        description="Speaks a split's texts in the voices of their recordings, and writes down "
        "what is heard: error rates of recorded, resynthesised and synthesised speech.",
    )
    p.add_argument("--workdir", required=True, help="the run's folder")
    p.add_argument("--split", default="test", help="train, validation or test (default)")
    p.add_argument("--batches", type=int, help="only so many batches")
    p.add_argument("--waves", help="a folder for the first synthesised waves of each batch")
    p.add_argument("--json", help="a file for the metrics")
    return p


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    prepare_jax()

    from rich.table import Table

    from mtmm_jax.evaluation.speech import find_tasks, round_trip
    from mtmm_jax.inference.finished import open_run
    from mtmm_jax.registry import choose
    from mtmm_jax.store.workdir import Workdir
    from mtmm_jax.tasks.synthesis import write_wave
    from mtmm_jax.training.loop import evaluation_batches

    choose(arguments.split, ("train", "validation", "test"), "--split", "split")
    run = open_run(arguments.workdir, Workdir.at(arguments.workdir).config())
    experiment = run.experiment
    task = experiment.model.tasks[find_tasks(experiment.model)[0]]
    rate = experiment.source.spec.targets[task.target].rate
    batches = evaluation_batches(experiment, arguments.split)
    batches = itertools.islice(batches, arguments.batches)
    metrics, waves = round_trip(experiment.model, run.variables, batches)
    table = Table(title=f"{arguments.workdir}, step {run.step}, {arguments.split}, {len(waves)}")
    table.add_column("speech")
    for metric in next(iter(metrics.values())):
        table.add_column(metric, justify="right")
    for name, row in metrics.items():
        table.add_row(name, *(f"{value:.3f}" for value in row.values()))
    console().print(table)
    if arguments.waves:
        folder = Path(arguments.waves)
        folder.mkdir(parents=True, exist_ok=True)
        for i, (id, wave) in enumerate(waves[:: max(len(waves) // 20, 1)]):
            name = experiment.source.describe(id).replace(" ", "_")
            write_wave(folder / f"{i:02d}_{name}.wav", wave, rate)
    if arguments.json:
        found = {"split": arguments.split, "step": run.step, "metrics": metrics}
        Path(arguments.json).write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
