"""Smaller models: pruned, in eight bits, and what is lost by it.

    python -m mtmm_jax.benchmarks.smaller --json smaller.json --workdir runs/smaller

A config is trained as it is and with each change, and every model is written as one file by
`mtmm_jax.export`: told are its bytes, parameters, zeros, the tasks' test figures, and the time that
the file takes for a sample on the CPU, all files in turns. Rows that stand in the JSON file are not
run again. `--only products` times a product of int8 by int8 beside one of float32.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mtmm_jax.benchmarks.board import Board, arguments, names_of, seeds_of, spread
from mtmm_jax.command import console, guarded, prepare_jax

QUICK = 20  # steps
SHARE = 0.7
BATCHES = (1, 32)
WEIGHTS = "(encoders|fusion)/.*/(kernel|recurrent)"
# Row -> what of the config is changed, and whether its file is of eight bits.
PLAIN = "plain"
ROWS: dict[str, tuple[str, bool]] = {
    PLAIN: ("plain", False),
    "int8, after training": ("plain", True),
    "int8, trained so": ("quantised", True),
    "pruned 70%": ("pruned", False),
    "pruned 70%, int8": ("pruned", True),
    "channels pruned 30%": ("structured", False),
}
ALLOWED = {"pruned 70%": 0.02, "int8, after training": 0.01, "int8, trained so": 0.01}
PRODUCTS = "products"


def config_of(name: str, form: str, steps: int | None) -> Any:
    """The config with one of the changes that `ROWS` names."""
    from ml_collections import ConfigDict

    from mtmm_jax import training

    config = training.load(name)
    with config.unlocked(), config.ignore_type():
        config.steps = steps = steps or config.steps
        if form == "quantised":
            config.quantise = ConfigDict({"bits": 8, "on": [".*/(kernel|recurrent|embedding)"]})
        if form in ("pruned", "structured"):
            config.optimizer.prune = ConfigDict(
                {
                    "kind": "magnitude" if form == "pruned" else "structured",
                    "share": SHARE if form == "pruned" else 0.3,
                    "scope": "global" if form == "pruned" else "layer",
                    "begin": steps // 10,
                    "end": steps * 7 // 10,
                    "every": max(steps // 50, 1),
                    "on": [WEIGHTS],
                }
            )
    return config


def measure(run: Any, variables: Any, int8: bool, file: Path) -> dict[str, Any]:
    """Writes the file, and tells what is in it and what its numbers reach on the test split."""
    from mtmm_jax.model import flatten
    from mtmm_jax.training.exporting import export_run, plain
    from mtmm_jax.training.finished import Finished
    from mtmm_jax.training.workdir import Workdir
    from mtmm_jax.transfer import pruning
    from mtmm_jax.transfer.quantising import dequantise, quantise

    experiment = run.experiment
    finished = Finished(Workdir(file.parent), experiment, experiment.config["steps"], variables)
    export_run(finished, file, int8=int8)
    params = plain(experiment.model, variables)[1]["params"]
    if int8:
        small = dequantise(quantise(params))
        kept = {k: v for k, v in variables["params"].items() if k not in small}
        variables = {**variables, "params": {**kept, **small}}
    test = run.figures(run.evaluate(variables, "test"))
    found = pruning.zeros(params, [WEIGHTS]).values()
    return {
        "test": {name: round(float(value), 4) for name, value in test.items()},
        "bytes": file.stat().st_size,
        "parameters": sum(int(np.size(x)) for x in flatten(params).values()),
        "zeros": round(sum(none for none, _ in found) / sum(size for _, size in found), 4),
    }


def latency(files: Mapping[str, Path], source: Any, split: str = "test") -> dict[str, Any]:
    """`{row: {batch: ms a sample}}`: the median, all files in turns."""
    from mtmm_jax import exported
    from mtmm_jax.benchmarks.timing import interleaved

    models = {name: exported.load(path) for name, path in files.items()}
    told: dict[str, Any] = {name: {} for name in files}
    for rows in BATCHES:
        inputs = next(iter(source.batches(split, rows)))["inputs"]
        read = {name: {m: inputs[m] for m in model.spec["modalities"] if m in inputs}
                for name, model in models.items()}  # fmt: skip
        calls = {
            name: lambda model=model, given=read[name]: model.predict(given)
            for name, model in models.items()
        }
        for name, milliseconds in interleaved(calls, warm=True).items():
            told[name][str(rows)] = round(milliseconds / rows, 4)
    return told


def products(sizes: Sequence[int] = (128, 512)) -> list[dict[str, Any]]:
    """A Dense layer's product of `[N, N]` by `[N, N]` in milliseconds: float32, and int8 by int8
    into int32 with the inputs rounded by their own largest number, as a layer would have to."""
    import jax
    import jax.numpy as jnp

    from mtmm_jax.benchmarks.timing import interleaved
    from mtmm_jax.transfer.quantising import rounded, scales

    @jax.jit
    def whole(x: Any, w: Any) -> Any:
        return x @ w

    @jax.jit
    def small(x: Any, values: Any, scale: Any) -> Any:
        s = jnp.abs(x).max() / 127
        q = rounded(x, s).astype(jnp.int8)
        sums = jax.lax.dot_general(
            q, values, (((1,), (0,)), ((), ())), preferred_element_type=jnp.int32
        )
        return sums.astype(jnp.float32) * (s * scale)

    found = []
    for size in sizes:
        x, w = (
            jnp.asarray(v, jnp.float32)
            for v in np.random.default_rng(0).normal(size=(2, size, size))
        )
        scale = scales("kernel", w)
        values = rounded(w, scale).astype(jnp.int8)
        calls = {
            "float32": lambda x=x, w=w: whole(x, w).block_until_ready(),
            "int8": lambda x=x, q=values, s=scale: small(x, q, s).block_until_ready(),
        }
        told = interleaved(calls, seconds=1.0, warm=True)
        found.append({"size": size, **{name: round(ms, 4) for name, ms in told.items()}})
    return found


def table(board: Board, key: Mapping[str, Any], names: Sequence[str]) -> Any:
    """A line for each row: means and spreads over seeds, beside the plain one's."""
    from rich.table import Table

    out = Table(title=f"{key['config']}, {key['steps']} steps, test")
    plain = board.find(**key, row=PLAIN)
    times = next((found["latency"] for found in board.find(**key, row="latency")), {})
    tasks = list(plain[0]["test"]) if plain else []
    for column in ("model", *tasks, "worst change", "file, kB", "of plain", "zeros"):
        out.add_column(column)
    for rows in BATCHES:
        out.add_column(f"ms a sample, batch {rows}")
    out.add_column("asked")
    for name in names:
        mine = board.find(**key, row=name)
        if not mine or not plain:
            continue
        size, of = (np.mean([row["bytes"] for row in rows]) for rows in (mine, plain))
        means = [
            {t: np.mean([row["test"][t] for row in rows]) for t in tasks} for rows in (mine, plain)
        ]
        worst = min(means[0][task] - means[1][task] for task in tasks)
        asked = ""
        if name in ALLOWED:
            fine = worst >= -ALLOWED[name] and (not ROWS[name][1] or size <= 0.3 * of)
            asked = "kept" if fine else "missed"
        out.add_row(
            name,
            *(spread([row["test"][task] for row in mine]) for task in tasks),
            f"{100 * worst:+.1f} points",
            f"{size / 1e3:.0f}",
            f"{size / of:.2f}",
            spread([row["zeros"] for row in mine]),
            *(str(times.get(name, {}).get(str(rows), "-")) for rows in BATCHES),
            asked,
        )
    return out


def parser() -> argparse.ArgumentParser:
    p = arguments(
        "smaller",
        "Trains a config pruned and in eight bits, and compares files and figures.",
        only=f"of {', '.join((*ROWS, PRODUCTS))}, parted by commas",
        quick=QUICK,
    )
    p.add_argument("--config", default="emoji", help="a config file or name (default: emoji)")
    p.add_argument("--steps", type=int, help="of each run; the config's by default")
    p.add_argument("--workdir", default="runs/smaller", help="the folder of the files")
    return p


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    names = names_of(options.only, (*ROWS, PRODUCTS), "row") if options.only else list(ROWS)
    prepare_jax()

    from mtmm_jax.benchmarks.short_runs import ShortRun

    out, board, folder = console(), Board(options.json), Path(options.workdir)
    folder.mkdir(parents=True, exist_ok=True)
    steps = QUICK if options.quick else config_of(options.config, "plain", options.steps).steps
    seeds = seeds_of(options.seeds, options.quick)
    key = {"config": Path(options.config).stem, "steps": steps}
    if PRODUCTS in names:
        names.remove(PRODUCTS)
        for row in products():
            board.add({"row": PRODUCTS, **row})
            out.print(row)
    elif PLAIN not in names:
        names.insert(0, PLAIN)
    files = {name: folder / f"{name.replace(' ', '_')}_{steps}.zip" for name in names}
    for form in dict.fromkeys(ROWS[name][0] for name in names):
        mine, run = [name for name in names if ROWS[name][0] == form], None
        for seed in seeds:
            left = [name for name in mine if not board.find(**key, row=name, seed=seed)]
            if not left:
                continue
            out.print(f"{form}: seed {seed}", highlight=False)
            run = run or ShortRun(config_of(options.config, form, steps))
            variables = run.train(seed)
            for name in left:
                board.add({**key, "row": name, "seed": seed,
                           **measure(run, variables, ROWS[name][1], files[name])})  # fmt: skip
    if names and all(path.exists() for path in files.values()):
        known = board.find(**key, row="latency")
        if not known or set(known[-1]["latency"]) < set(names):
            from mtmm_jax import data, training

            source = data.build(training.load(options.config).data.to_dict())
            row = {**key, "row": "latency", "latency": latency(files, source)}
            board.add(row, instead=known)
    if names:
        out.print(table(board, key, names))
    return 0


if __name__ == "__main__":
    sys.exit(main())
