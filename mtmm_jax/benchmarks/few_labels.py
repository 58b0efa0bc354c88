"""What helps where labels are few: pretraining, rows without labels, names alone, a teacher.

    python -m mtmm_jax.benchmarks.few_labels --json few_labels.json --workdir runs/few_labels
    python -m mtmm_jax.benchmarks.few_labels --only "pseudo 10%,supervised 10%" --seeds 0,1,2

Every row is an ordinary run of a config in a folder of its own and goes on where it stopped; rows
that begin from another row's run, or learn from it, are given that of the same seed. Rows that
stand in the JSON file are not run again. The table is Markdown, test figures over the seeds.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mtmm_jax.benchmarks.board import Board, arguments, names_of, seeds_of, spread
from mtmm_jax.command import console, guarded, prepare_jax

QUICK = 10  # steps
SHARES = (5, 10)  # percent of the category labels
HELD_OUT = 20  # subcategories of the emoji


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        config: its name.
        changes: overrides of the command line, without their `--config.`.
        begins: the row whose run it begins from.
        taught: the rows whose runs teach it.
        beside: the row that it is compared with.
        zero_shot: a class label that is told by names and by a few examples.
    """

    config: str
    changes: tuple[str, ...] = ()
    begins: str | None = None
    taught: tuple[str, ...] = ()
    beside: str | None = None
    zero_shot: str | None = None

    @property
    def needs(self) -> tuple[str, ...]:
        """The rows that must be run before."""
        return self.taught if self.begins is None else (self.begins, *self.taught)


def _rows() -> Iterator[tuple[str, Row]]:
    pretrained = ("contrastive", "masked", "autoencoding", "translation")
    for kind in pretrained:
        yield f"pretraining, {kind}", Row(f"pretrain_{kind}")
    for share in SHARES:
        hide = f"data.hide={{'category': {share / 100}}}"
        alone = f"supervised {share}%"
        yield alone, Row("finetune", ("init_from=None", hide))
        for kind in pretrained:
            begins = f"pretraining, {kind}"
            yield (
                f"{kind}, then {share}%",
                Row("finetune", (hide,), begins=begins, beside=alone),
            )
        for kind in ("pseudo", "mean_teacher", "consistency"):
            yield f"{kind} {share}%", Row(f"semi_{kind}", (hide,), beside=alone)
    held = (
        f"data.held_out={{'subcategory': {HELD_OUT}}}",
        "model.encoders.audio=None",
        "tasks.retrieval.reads=['image', 'text']",
        "steps=800",
    )
    yield "zero-shot", Row("contrastive", held, zero_shot="subcategory")
    yield "teacher", Row("distil_teacher")
    yield "quarter, alone", Row("distil_small", ("teachers=None",), beside="teacher")
    yield "quarter, taught", Row("distil_small", taught=("teacher",), beside="teacher")
    yield "all modalities", Row("fusion_late")
    for name in ("image", "text", "audio"):
        yield f"{name} alone", Row(f"independent_{name}")
    yield (
        "image, taught by all",
        Row("distil_cross_modal", taught=("all modalities",), beside="image alone"),
    )
    members = tuple(f"{name} alone" for name in ("image", "text", "audio"))
    yield (
        "all, taught by each",
        Row("distil_unimodal", taught=members, beside="all modalities"),
    )


ROWS: dict[str, Row] = dict(_rows())


def folder_of(name: str, seed: int, steps: int | None, workdir: Path) -> Path:
    """Of a row's run."""
    plain = "".join(c if c.isalnum() else "_" for c in name)
    return workdir / f"{plain}_{steps or 'full'}" / str(seed)


def config_of(name: str, seed: int, steps: int | None, workdir: Path) -> Any:
    """The config of a row, with the folders of the runs that it needs."""
    from mtmm_jax import training

    row = ROWS[name]
    config = training.load(row.config)
    overrides = [f"--config.{change}" for change in row.changes]
    config = training.apply_overrides(config, overrides)
    with config.unlocked(), config.ignore_type():
        if row.begins:
            config.init_from = {"workdir": str(folder_of(row.begins, seed, steps, workdir))}
        if row.taught:
            paths = [str(folder_of(one, seed, steps, workdir)) for one in row.taught]
            config.teachers.workdirs = paths
        config.seed = seed
        config.steps = steps or config.steps
        config.evaluation.baselines = False
    return config


def run(name: str, seed: int, steps: int | None, workdir: Path) -> dict[str, Any]:
    """Trains a row, or finds its results, and tells its figures."""
    import jax

    from mtmm_jax import training
    from mtmm_jax.evaluation import zero_shot
    from mtmm_jax.train import fit
    from mtmm_jax.training.finished import open_run
    from mtmm_jax.training.results import finite

    started, row = time.monotonic(), ROWS[name]
    config = config_of(name, seed, steps, workdir)
    experiment = training.assemble(config)
    place = folder_of(name, seed, steps, workdir)
    told = fit(experiment, place)["test"]
    model = experiment.model
    figures = {task: told[task][model.tasks[task].headline] for task in config.tasks if told[task]}
    known = {"row": name, "seed": seed, "steps": steps}
    known |= {"parameters": sum(x.size for x in jax.tree.leaves(experiment.shapes.params))}
    if row.zero_shot:
        size = experiment.config["evaluation"]["batch_size"]
        variables = open_run(place).variables
        found = zero_shot.measure(model, variables, experiment.source, row.zero_shot, size)
        figures |= {f"{row.zero_shot}, {key}": value for key, value in found["names"].items()}
        known |= {"zero_shot": finite(found)}
    known |= {"test": finite(figures), "seconds": round(time.monotonic() - started, 1)}
    return known


def ordered(names: Sequence[str]) -> list[str]:
    """The rows with all that they need, each after what it needs."""
    found: list[str] = []
    for name in names:
        found += [one for one in ordered(ROWS[name].needs) if one not in found]
        found += [name] if name not in found else []
    return found


def table(board: Board, names: Sequence[str], steps: int | None) -> str:
    """Markdown: test figures, and the points gained over what stands beside, by mean."""
    lines = ["| row | config | parameters | test | beside it |", "|---|---|---|---|---|"]
    for name in names:
        mine = board.find(row=name, steps=steps)
        if not mine:
            continue
        row, shown = ROWS[name], []
        for task in mine[0]["test"]:
            shown.append(f"{task} {spread([one['test'][task] for one in mine])}")
        other = board.find(row=row.beside, steps=steps) if row.beside else []
        gains = [
            f"{task} {100 * (_mean(mine, task) - _mean(other, task)):+.1f}"
            for task in (mine[0]["test"] if other else ())
            if task in other[0]["test"]
        ]
        beside = f"{row.beside}: {', '.join(gains)} points" if gains else ""
        count = f"{mine[0]['parameters']:,}"
        lines.append(f"| {name} | `{row.config}` | {count} | {', '.join(shown)} | {beside} |")
    return "\n".join(lines)


def _mean(rows: Sequence[Mapping[str, Any]], task: str) -> float:
    values = [row["test"][task] for row in rows if row["test"].get(task) is not None]
    return float(np.mean(values)) if values else float("nan")


def parser() -> argparse.ArgumentParser:
    p = arguments(
        "few_labels",
        "Few labels: pretraining, semi-supervised learning, zero-shot, distillation.",
        only="rows parted by commas, such as 'supervised 5%,pseudo 5%'",
        quick=f"{QUICK} steps and one seed: does it run?",
    )
    p.add_argument("--steps", type=int, help="of every run; the configs' own by default")
    p.add_argument("--workdir", default="runs/few_labels_table", help="the folder of the runs")
    return p


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    names = names_of(options.only, ROWS, "row")
    prepare_jax()

    out, board, workdir = console(), Board(options.json), Path(options.workdir)
    steps = QUICK if options.quick else options.steps
    seeds = seeds_of(options.seeds, options.quick)
    plan = ordered(names)
    for number, name in enumerate(plan, start=1):
        for seed in seeds:
            kept = board.find(row=name, steps=steps, seed=seed)
            later = [one for one in plan if name in ROWS[one].needs]
            if kept and all(board.find(row=one, steps=steps, seed=seed) for one in later):
                continue
            out.print(f"{number}/{len(plan)} {name}, seed {seed}", highlight=False)
            told = run(name, seed, steps, workdir)  # what was run before is found in its folder
            if not kept:
                board.add(told)
    print(table(board, plan, steps))
    return 0


if __name__ == "__main__":
    sys.exit(main())
