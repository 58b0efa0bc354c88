"""Whether explanations are right: what is lost with the parts that they name, and with others.

    python -m mtmm_jax.benchmarks.explanations --workdirs runs/a,runs/b,runs/c --json F

For every modality of each run, alone and beside the others: the probability of what the model
answered falls by `highest` when the fifth of the patches, words or moments with the highest
attributions is taken away, and by `random` when as many others are (the mean over ten orders). Rows
are the mean over the samples of a split.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mtmm_jax.benchmarks.seeds import spread
from mtmm_jax.command import console, guarded, prepare_jax
from mtmm_jax.registry import whole_number

SHARES = (0.0, 0.1, 0.2, 0.3, 0.5)
AT = 0.2
ORDERS = 10


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m mtmm_jax.benchmarks.explanations",
        description="What is lost with the parts that explanations name, beside others.",
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

    from mtmm_jax.benchmarks.timing import write_json

    for name in ("samples", "steps"):
        whole_number(getattr(options, name), f"--{name}")
    rows: list[dict[str, Any]] = []
    for path in options.workdirs.split(","):
        rows += measured(path, options)
        if options.json:
            settings = {k: getattr(options, k) for k in ("task", "split", "samples", "steps")}
            write_json(options.json, rows, settings=settings)
    console().print(table(rows))
    return 0


def measured(path: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each modality, alone and beside the others."""
    import jax
    import jax.numpy as jnp
    from rich.progress import track

    from mtmm_jax.analysis.explanation import explainable, taken_apart
    from mtmm_jax.analysis.overview import some_batches
    from mtmm_jax.evaluation.attribution import Explainer
    from mtmm_jax.registry import choose
    from mtmm_jax.training.finished import open_run
    from mtmm_jax.training.workdir import Workdir

    run = open_run(path, Workdir.at(path).read("config.json"))
    model = run.experiment.model
    choose(options.task, explainable(run, tuple(model.encoders)), "--task", "explainable task")
    told = Explainer(model, [options.task], options.steps)
    batches = some_batches(run.experiment, options.split, options.samples)
    sums: dict[tuple[str, bool], list[np.ndarray]] = {}
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
                _, answers, found, _ = told.attribute(run.variables, seen, parts)
                curves = told.deletion(
                    run.variables, seen, parts, answers, found, jnp.asarray(SHARES),
                    jax.random.fold_in(jax.random.key(0), number), ORDERS, only=name,
                )  # fmt: skip
                both = [np.asarray(curves[name][k])[:, 0] for k in ("highest", "random")]
                rows = counted & whole[name]["present"]
                sums.setdefault((name, alone), []).append(np.stack(both)[..., rows])
    rows = []
    for (name, alone), kept in sums.items():
        highest, random = np.concatenate(kept, axis=-1).mean(-1)
        at = SHARES.index(AT)
        rows.append(
            {
                "workdir": path,
                "modality": name,
                "alone": alone,
                "samples": sum(k.shape[-1] for k in kept),
                "highest": round(float(highest[0] - highest[at]), 4),
                "random": round(float(random[0] - random[at]), 4),
                "curve_highest": [round(float(v), 4) for v in highest],
                "curve_random": [round(float(v), 4) for v in random],
            }
        )
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> Any:
    """A line for each modality: means over the runs."""
    from rich.table import Table

    out = Table(title="lost of the answer's probability without a fifth of the parts")
    for name in ("modality", "the others", "highest", "random", "ratio of means"):
        out.add_column(name)
    for name, alone in dict.fromkeys((row["modality"], row["alone"]) for row in rows):
        mine = [row for row in rows if (row["modality"], row["alone"]) == (name, alone)]
        means = {k: [row[k] for row in mine] for k in ("highest", "random")}
        ratio = np.mean(means["highest"]) / max(float(np.mean(means["random"])), 1e-9)
        cells = [spread(means[k]) for k in ("highest", "random")]
        out.add_row(name, "absent" if alone else "there", *cells, f"{ratio:.2f}")
    return out


if __name__ == "__main__":
    sys.exit(main())
