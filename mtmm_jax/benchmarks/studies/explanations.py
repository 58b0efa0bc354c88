"""Faithfulness of explanations: the loss without the parts that they name, and without others.

    python -m mtmm_jax.benchmarks.studies.explanations --workdirs runs/a,runs/b,runs/c --json F

For every modality of each run, alone and next to the others: the probability of what the model
answered falls by `highest` when the fifth of the patches, words or moments with the highest
attributions is taken away, and by `random` when as many others are (the mean over ten orders); by
`attention` when it is what the model attended to most, where it attends to anything. Rows are the
mean over the samples of a split; runs whose rows are in the JSON file are not repeated.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mtmm_jax.benchmarks.tables.result_table import Board
from mtmm_jax.benchmarks.tables.seeds import spread
from mtmm_jax.command import console, guarded, prepare_jax
from mtmm_jax.ranges import Count
from mtmm_jax.registry import check

SHARES = (0.0, 0.1, 0.2, 0.3, 0.5)
AT = 0.2
ORDERS = 10
KINDS = ("highest", "random", "attention")


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m mtmm_jax.benchmarks.studies.explanations",
        description="What is lost with the parts that explanations name, next to others.",
    )
    p.add_argument("--workdirs", required=True, help="finished runs, such as one of each seed")
    p.add_argument("--task", default="category", help="whose answers (default: category)")
    p.add_argument("--split", default="test", help="default: test")
    p.add_argument("--samples", type=int, default=256, help="of the split (default: 256)")
    p.add_argument("--steps", type=int, default=16, help="of the integrals (default: 16)")
    p.add_argument("--json", help="a file for the rows")
    return p


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    prepare_jax()

    for name in ("samples", "steps"):
        check(getattr(options, name), Count, f"--{name}")
    board, rows = Board(options.json), []
    for path in options.workdirs.split(","):
        key = {"workdir": path, "task": options.task, "split": options.split}
        key |= {"most": options.samples, "steps": options.steps}
        if not board.find(**key):
            for row in measured(path, options):
                board.add({**key, **row})
        rows += board.find(**key)
    console().print(table(rows))
    return 0


def measured(path: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each modality, alone and next to the others."""
    import jax
    import jax.numpy as jnp
    from rich.progress import track

    from mtmm_jax.analysis.explanation import explainable, taken_apart
    from mtmm_jax.analysis.explanation_attention import Attention, deletion
    from mtmm_jax.analysis.overview import some_batches
    from mtmm_jax.evaluation.attribution import Explainer
    from mtmm_jax.inference.finished import open_run
    from mtmm_jax.registry import choose
    from mtmm_jax.store.workdir import Workdir

    run = open_run(path, Workdir.at(path).config())
    model = run.experiment.model
    choose(options.task, explainable(run, tuple(model.encoders)), "--task", "explainable task")
    explainer, look = (
        Explainer(model, [options.task], options.steps),
        Attention(model, [options.task]),
    )
    batches = some_batches(run.experiment, options.split, options.samples)
    sums: dict[tuple[str, bool], dict[str, list[np.ndarray]]] = {}
    for number, batch in enumerate(track(batches, f"explaining {path}", console=console())):
        whole = {n: jax.tree.map(np.asarray, batch["inputs"][n]) for n in model.encoders}
        parts, _ = taken_apart(run, whole)
        counted = np.asarray(batch.get("weight", np.ones(len(batch["id"])))) > 0
        for name in model.encoders:
            for alone in (True, False):
                seen = {
                    n: e if n == name or not alone else {**e, "present": 0 * e["present"] > 0}
                    for n, e in whole.items()
                }
                _, answers, found, _ = explainer.attribute(run.variables, seen, parts)
                curves = explainer.deletion(
                    run.variables, seen, parts, answers, found, jnp.asarray(SHARES),
                    jax.random.fold_in(jax.random.key(0), number), ORDERS, only=name,
                )  # fmt: skip
                found = {key: np.asarray(curve)[:, 0] for key, curve in curves[name].items()}
                attended = look(run.variables, seen, parts)
                looked = deletion(
                    explainer,
                    run.variables,
                    seen,
                    parts,
                    answers,
                    attended,
                    jnp.asarray(SHARES),
                    name,
                )[options.task]
                if name in looked:
                    found["attention"] = looked[name]
                rows = counted & whole[name]["present"]
                for key, curve in found.items():
                    kept = sums.setdefault((name, alone), {}).setdefault(key, [])
                    kept.append(curve[:, rows])
    rows = []
    for (name, alone), kept in sums.items():
        row = {"modality": name, "alone": alone}
        row["samples"] = sum(part.shape[-1] for part in kept["random"])
        for key, parts in kept.items():
            curve = np.concatenate(parts, axis=-1).mean(-1)
            row[key] = round(float(curve[0] - curve[SHARES.index(AT)]), 4)
            row[f"curve_{key}"] = [round(float(value), 4) for value in curve]
        rows.append(row)
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> Any:
    """A line for each modality: means over the runs."""
    from rich.table import Table

    out = Table(title="lost of the answer's probability without a fifth of the parts")
    for name in ("modality", "the others", *KINDS, "gradients to random", "attention to random"):
        out.add_column(name)
    for name, alone in dict.fromkeys((row["modality"], row["alone"]) for row in rows):
        mine = [row for row in rows if (row["modality"], row["alone"]) == (name, alone)]
        by_kind = {kind: [row[kind] for row in mine if kind in row] for kind in KINDS}
        means = {kind: float(np.mean(values)) for kind, values in by_kind.items() if values}
        chance = max(means["random"], 1e-9)
        ratios = [f"{means[k] / chance:.2f}" if k in means else "-" for k in (KINDS[0], KINDS[2])]
        cells = [spread(by_kind[kind]) if by_kind[kind] else "-" for kind in KINDS]
        out.add_row(name, "absent" if alone else "there", *cells, *ratios)
    return out


if __name__ == "__main__":
    sys.exit(main())
