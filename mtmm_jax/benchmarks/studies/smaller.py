"""Smaller models: pruned, in eight bits, and what is lost by it.

    python -m mtmm_jax.benchmarks.studies.smaller --json smaller.json --workdir runs/smaller

A config is trained as it is and with each change; a teacher and its student of a quarter are the
runs of `studies.few_labels`. Every model is written as one file by `mtmm_jax.export`, and the
file is measured: bytes, zeros, the tasks' test metrics by what it predicts, eight bits included,
and its time for a sample on the CPU, all files in turns. Rows that stand in the JSON file are not
run again. `--only products` times a product of int8 by int8 next to one of float32.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import zipfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mtmm_jax.benchmarks.recipes import runs as recipe_runs
from mtmm_jax.benchmarks.studies import few_labels
from mtmm_jax.benchmarks.tables.result_table import Board, arguments, names_of, seeds_of, spread
from mtmm_jax.command import console, guarded, prepare_jax
from mtmm_jax.registry import ConfigError

QUICK = 20  # steps
BATCHES = (1, 32)
WEIGHTS = "(encoders|fusion)/.*/(kernel|recurrent)"
PLAIN, TEACHER, LATENCY, PRODUCTS = "plain", "teacher", "latency", "products"


@dataclasses.dataclass(frozen=True)
class Row:
    """One model and its file.

    Attributes:
        change: the config whose `quantise` or `optimizer.prune` is taken; None: as it is.
        int8: whether the file is of eight bits.
        run: another training instead, in a folder.
        baseline: the row that it is compared with.
        allowed: what of any task's metric may be lost.
    """

    change: str | None = None
    int8: bool = False
    run: recipe_runs.TrainingRun | None = None
    baseline: str = PLAIN
    allowed: float | None = None


ROWS = {
    PLAIN: Row(),
    "int8, after training": Row(int8=True, allowed=0.01),
    "int8, trained so": Row("quantised", int8=True, allowed=0.01),
    "pruned 70%": Row("pruned", allowed=0.02),
    "pruned 70%, int8": Row("pruned", int8=True),
    "channels pruned 30%": Row("pruned_channels"),
    TEACHER: Row(run=few_labels.ROWS["teacher"].run, baseline=TEACHER),
    "student": Row(run=few_labels.ROWS["quarter, distilled"].run, baseline=TEACHER, allowed=0.02),
}


def config_of(name: str, change: str | None, steps: int | None) -> Any:
    """The config with a change that `ROWS` names; pruning begins and ends at its share of steps."""
    from mtmm_jax import training

    config = training.load(name)
    with config.unlocked(), config.ignore_type():
        config.steps = steps or config.steps
        other = training.load(change) if change else config
        config.quantise = other.get("quantise")
        if "prune" in other.optimizer and other is not config:
            config.optimizer.prune = prune = other.optimizer.prune
            for key, least in (("begin", 0), ("end", 1), ("every", 1)):
                prune[key] = max(prune[key] * config.steps // other.steps, least)
    return config


def key_of(name: str, config: str, steps: int | None) -> dict[str, Any]:
    """The key of a row's lines in the JSON file."""
    from mtmm_jax import training

    run = ROWS[name].run if name in ROWS else None
    config = run.config if run else config
    return {"config": Path(config).stem, "steps": steps or training.load(config).steps, "row": name}


def reached(file: Path, experiment: Any, split: str = "test") -> dict[str, float]:
    """`{task: headline}` of a split, larger is better, by the predictions of an exported file."""
    import jax

    from mtmm_jax.evaluation import headlines
    from mtmm_jax.evaluation.split import compute, merge, metric_states
    from mtmm_jax.inference import exported
    from mtmm_jax.training.loop import evaluation_batches

    model, program, states = experiment.model, exported.load(file), None
    update = jax.jit(lambda predictions, batch: metric_states(model, predictions, batch))
    for batch in evaluation_batches(experiment, split):
        outputs = program.predict({name: batch["inputs"][name] for name in model.encoders})
        restored = {}
        for name, task in model.tasks.items():
            if task.restore is None:
                able = [n for n, t in model.tasks.items() if t.restore is not None]
                raise ConfigError(
                    f"tasks.{name}: {task.kind!r} cannot be scored by its outputs; tasks that can: "
                    f"{', '.join(able) or 'none'}"
                )
            restored[name] = task.restore(outputs[name])
        part = jax.device_get(update(restored, batch))
        states = part if states is None else merge(model, states, part)
    return headlines(model, compute(model, states))


def measure(experiment: Any, variables: Any, int8: bool, file: Path) -> dict[str, Any]:
    """Writes the file; returns its size and its metrics on the test split."""
    from mtmm_jax.inference import export, finished
    from mtmm_jax.model import flatten
    from mtmm_jax.optim import pruning
    from mtmm_jax.store import workdir

    place = workdir.Workdir(file.parent)
    run = finished.Finished(place, experiment, experiment.config["steps"], variables)
    export.export_run(run, file, int8=int8)
    params = export.plain(experiment.model, variables)[1]["params"]
    found = pruning.zeros(params, [WEIGHTS]).values()
    return {
        "test": {name: round(float(value), 4) for name, value in reached(file, experiment).items()},
        "bytes": file.stat().st_size,
        "parameters": sum(int(np.size(x)) for x in flatten(params).values()),
        "zeros": round(sum(none for none, _ in found) / sum(size for _, size in found), 4),
    }


def latency(files: Mapping[str, Path]) -> dict[str, Any]:
    """`{row: {batch: ms a sample}}`: the median, all files in turns, on inputs of zeros."""
    from mtmm_jax.batch import Spec
    from mtmm_jax.benchmarks.speed.timing import interleaved
    from mtmm_jax.inference import exported

    latencies: dict[str, Any] = {name: {} for name in files}
    for rows in BATCHES:
        calls = {}
        for name, path in files.items():
            model = exported.load(path)
            inputs = Spec.from_dict(model.spec).example(rows)["inputs"]
            read = json.loads(zipfile.ZipFile(path).read("config.json"))["model"]["encoders"]
            calls[name] = partial(model.predict, {m: inputs[m] for m in read if read[m]})
        for name, milliseconds in interleaved(calls, warm=True).items():
            latencies[name][str(rows)] = round(milliseconds / rows, 4)
    return latencies


def products(sizes: Sequence[int] = (128, 512)) -> list[dict[str, Any]]:
    """A Dense layer's product of `[N, N]` by `[N, N]` in milliseconds: float32, and int8."""
    import jax
    import jax.numpy as jnp

    from mtmm_jax.benchmarks.speed.timing import interleaved
    from mtmm_jax.transfer.quantising import product, quantise

    whole, small, found = jax.jit(jnp.matmul), jax.jit(product), []
    for size in sizes:
        x, w = jnp.asarray(np.random.default_rng(0).normal(size=(2, size, size)), jnp.float32)
        q = quantise({"kernel": w}, ["kernel"])["kernel"]
        calls = {
            "float32": lambda x=x, w=w: whole(x, w).block_until_ready(),
            "int8": lambda x=x, q=q: small(x, q).block_until_ready(),
        }
        times = interleaved(calls, seconds=1.0, warm=True)
        found.append({"size": size, **{name: round(ms, 4) for name, ms in times.items()}})
    return found


def table(board: Board, config: str, steps: int | None, names: Sequence[str]) -> Any:
    """A line for each row: means and spreads over seeds, next to those of another."""
    from rich.table import Table

    rows = {name: board.find(**key_of(name, config, steps)) for name in ROWS}
    shown = [name for name in names if rows[name] and rows[ROWS[name].baseline]]
    times = next((row["latency"] for row in board.find(**key_of(LATENCY, config, steps))), {})
    tasks = dict.fromkeys(task for name in shown for task in rows[name][0]["test"])
    out = Table(title=f"{Path(config).stem}, test")
    columns = ("model", *tasks, "worst change", "parameters", "file, kB", "of", "zeros")
    for column in (*columns, *(f"ms a sample, batch {size}" for size in BATCHES), "asked"):
        out.add_column(column)
    for name in shown:
        row, mine, other = ROWS[name], rows[name], rows[ROWS[name].baseline]
        worst = min(
            np.mean([one["test"][t] for one in mine]) - np.mean([one["test"][t] for one in other])
            for t in mine[0]["test"]
        )
        size, of = (np.mean([one["bytes"] for one in some]) for some in (mine, other))
        fine = worst >= -(row.allowed or 0) and (not row.int8 or size <= 0.3 * of)
        out.add_row(
            name,
            *(spread([one["test"].get(task) for one in mine]) for task in tasks),
            f"{100 * worst:+.1f} points",
            f"{mine[0]['parameters']:,}",
            f"{size / 1e3:.0f}",
            f"{size / of:.2f} {row.baseline}",
            spread([one["zeros"] for one in mine]),
            *(str(times.get(name, {}).get(str(batch), "-")) for batch in BATCHES),
            "" if row.allowed is None else "kept" if fine else "missed",
        )
    return out


def parser() -> argparse.ArgumentParser:
    p = arguments(
        "smaller",
        "Trains a config pruned and in eight bits, and compares files and metrics.",
        only=f"of {', '.join((*ROWS, PRODUCTS))}, parted by commas",
        quick=QUICK,
    )
    p.add_argument("--config", default="emoji", help="a config file or name (default: emoji)")
    p.add_argument("--steps", type=int, help="of each run; the config's by default")
    p.add_argument("--workdir", default="runs/smaller", help="the folder of the files")
    p.add_argument("--runs", default="runs/few_labels_table", help="the folder of few_labels")
    return p


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    names = names_of(options.only, (*ROWS, PRODUCTS), "row") if options.only else list(ROWS)
    prepare_jax()

    out, board = console(), Board(options.json)
    steps = QUICK if options.quick else options.steps
    if PRODUCTS in names:
        names.remove(PRODUCTS)
        for row in products():
            board.add({"row": PRODUCTS, **row})
            out.print(row)
    names = list(dict.fromkeys(one for name in names for one in (ROWS[name].baseline, name)))
    files = fill(board, names, options, steps)
    key = key_of(LATENCY, options.config, steps)
    if names and all(path.exists() for path in files.values()):
        known = board.find(**key)
        if not known or set(known[-1]["latency"]) < set(names):
            board.add({**key, "latency": latency(files)}, instead=known)
    if names:
        out.print(table(board, options.config, steps, names))
    return 0


def fill(
    board: Board, names: Sequence[str], options: argparse.Namespace, steps: int | None
) -> dict[str, Path]:
    """Trains and measures what is missing; returns the rows' files."""
    from mtmm_jax.benchmarks.tables.short_runs import ShortRun
    from mtmm_jax.inference.finished import open_run

    keys = {name: key_of(name, options.config, steps) for name in names}
    folder, runs = Path(options.workdir), Path(options.runs)
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        name: folder / f"{'_'.join(map(str, key.values())).replace(' ', '_')}.zip"
        for name, key in keys.items()
    }
    for change, run in dict.fromkeys((ROWS[name].change, ROWS[name].run) for name in names):
        mine = [name for name in names if (ROWS[name].change, ROWS[name].run) == (change, run)]
        short = None
        for seed in seeds_of(options.seeds, options.quick):
            left = [name for name in mine if not board.find(**keys[name], seed=seed)]
            if not left:
                continue
            console().print(f"{', '.join(left)}: seed {seed}", highlight=False)
            if run:
                recipe_runs.finish([run], seed, steps, runs)
                config = recipe_runs.own_config(run, seed, steps, runs)
                found = open_run(runs / run.folder(config.steps, seed), config.to_dict())
                experiment, variables = found.experiment, found.variables
            else:
                short = short or ShortRun(config_of(options.config, change, steps))
                experiment, variables = short.experiment, short.train(seed)
            for name in left:
                found = measure(experiment, variables, ROWS[name].int8, files[name])
                board.add({**keys[name], "seed": seed, **found})
    return files


if __name__ == "__main__":
    sys.exit(main())
