"""Few labels: pretraining, rows without labels, class names alone, distillation.

    python -m mtmm_jax.benchmarks.studies.few_labels --json rows.json --workdir runs/few_labels
    python -m mtmm_jax.benchmarks.studies.few_labels --only "pseudo 10%" --seeds 0,1,2

Every row is an ordinary run of a config in a folder of its own and resumes where it stopped; rows
that begin from another row's run, or learn from it, are given that of the same seed. Rows that
stand in the JSON file are not run again. The table is Markdown, test metrics over the seeds.

What a second task is worth over the share of labels, `CURVE`, are rows of `benchmarks.recipes`.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mtmm_jax.benchmarks.recipes import runs as recipe_runs
from mtmm_jax.benchmarks.recipes.label_curve import NO_PAIRS
from mtmm_jax.benchmarks.recipes.runs import TrainingRun
from mtmm_jax.benchmarks.tables.result_table import Board, arguments, names_of, seeds_of, spread
from mtmm_jax.command import guarded, prepare_jax

QUICK = 10  # steps
SHARES = (5, 10)  # percent of the category labels
# The model that sees; names and voices were there in pretraining alone.
PICTURE = ("model.encoders.text=None", "model.encoders.audio=None", "model.modality_dropout=0.0")


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        run: its training, in a folder.
        baseline: the row that it is compared with.
    """

    run: TrainingRun
    baseline: str | None = None


def _rows() -> Iterator[tuple[str, Row]]:
    pretrained = {
        kind: TrainingRun(f"pretrain_{kind}", how="fit")
        for kind in ("contrastive", "words", "masked", "autoencoding", "translation")
    }
    for kind, run in pretrained.items():
        yield f"pretraining, {kind}", Row(run)
    for share in SHARES:
        hide = f"data.hide={{'category': {share / 100}}}"
        alone = f"supervised {share}%"
        yield alone, Row(TrainingRun("few_labels", (hide, NO_PAIRS), how="fit"))
        for kind, run in pretrained.items():
            tuned = TrainingRun("finetune", (hide,), how="fit", after=run)
            yield f"{kind}, then {share}%", Row(tuned, baseline=alone)
        for kind in ("pseudo", "mean_teacher", "consistency"):
            yield (
                f"{kind} {share}%",
                Row(TrainingRun(f"semi_{kind}", (hide,), how="fit"), baseline=alone),
            )
        both = TrainingRun("semi_pretrained", (hide,), how="fit", after=pretrained["contrastive"])
        yield f"contrastive, then pseudo {share}%", Row(both, baseline=alone)
        seen = f"picture, supervised {share}%"
        yield seen, Row(TrainingRun("few_labels", (hide, NO_PAIRS, *PICTURE), how="fit"))
        tuned = TrainingRun(
            "finetune", (hide, *PICTURE), how="fit", after=pretrained["contrastive"]
        )
        yield f"picture, contrastive, then {share}%", Row(tuned, baseline=seen)
    teacher = TrainingRun("distil_teacher", how="fit")
    yield "teacher", Row(teacher)
    plain = TrainingRun("distil_small", ("teachers=None",), how="fit")
    yield "quarter, alone", Row(plain, baseline="teacher")
    teachers = TrainingRun("distil_small", how="fit", teachers=(teacher,))
    yield "quarter, distilled", Row(teachers, baseline="teacher")
    every = TrainingRun("fusion_late", how="fit")
    yield "all modalities", Row(every)
    single = {
        name: TrainingRun(f"independent_{name}", how="fit") for name in ("image", "text", "audio")
    }
    for name, run in single.items():
        yield f"{name} alone", Row(run)
    across = TrainingRun("distil_cross_modal", how="fit", teachers=(every,))
    yield "image, distilled from all", Row(across, baseline="image alone")
    from_each = TrainingRun("distil_unimodal", how="fit", teachers=tuple(single.values()))
    yield "all, distilled from each", Row(from_each, baseline="all modalities")


ROWS: dict[str, Row] = dict(_rows())


def key_of(name: str, steps: int | None) -> dict[str, Any]:
    """The key of a line's rows in the JSON file."""
    return {"row": name, **recipe_runs.key_of(ROWS[name].run, steps)}


def table(board: Board, names: Sequence[str], steps: int | None = None) -> str:
    """Markdown: test metrics, and the points gained over the baseline, by mean."""
    lines = ["| row | config | parameters | test | baseline |", "|---|---|---|---|---|"]
    for name in names:
        mine = board.find(**key_of(name, steps))
        if not mine:
            continue
        row, shown = ROWS[name], []
        for task in mine[0]["test"]:
            shown.append(f"{task} {spread([one['test'][task] for one in mine])}")
        other = board.find(**key_of(row.baseline, steps)) if row.baseline else []
        gains = [
            f"{task} {100 * (_mean(mine, task) - _mean(other, task)):+.1f}"
            for task in (mine[0]["test"] if other else ())
            if task in other[0]["test"]
        ]
        baseline = f"{row.baseline}: {', '.join(gains)} points" if gains else ""
        count = f"{mine[0]['parameters']:,}"
        lines.append(f"| {name} | `{row.run.config}` | {count} | {', '.join(shown)} | {baseline} |")
    return "\n".join(lines)


def _mean(rows: Sequence[Mapping[str, Any]], task: str) -> float:
    values = [row["test"][task] for row in rows if row["test"].get(task) is not None]
    return float(np.mean(values)) if values else float("nan")


def parser() -> argparse.ArgumentParser:
    p = arguments(
        "few_labels",
        "Few labels: pretraining, semi-supervised learning, distillation.",
        only="rows parted by commas, such as 'supervised 5%,pseudo 5%'",
        quick=QUICK,
        jobs=True,
    )
    p.add_argument("--workdir", default="runs/few_labels_table", help="the folder of the runs")
    return p


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    names = names_of(options.only, ROWS, "row")
    prepare_jax()

    board, folder = Board(options.json), Path(options.workdir)
    steps = QUICK if options.quick else None
    seeds = seeds_of(options.seeds, options.quick)
    with board.helped("mtmm_jax.benchmarks.studies.few_labels", argv, options.jobs):
        for number, name in enumerate(names, start=1):
            run = functools.partial(recipe_runs.fit, ROWS[name].run, steps=steps, folder=folder)
            board.fill(f"{number}/{len(names)} {name}", key_of(name, steps), seeds, run)
    print(table(board, list(ROWS), steps))
    return 0


if __name__ == "__main__":
    sys.exit(main())
