"""From Noto's drawings to Twemoji's: how much of the gap each way of adapting recovers.

    python -m mtmm_jax.benchmarks.studies.domains --json domains.json --workdir runs/domains
    python -m mtmm_jax.benchmarks.studies.domains --only coral,names --seeds 0

A picture's category, by the picture alone, for Twemoji's drawings of concepts that training never
shows. The gap is that between the source's labels only and the target's labels only, and a way
recovers (its metric - source only) / (target only - source only), over the means of the seeds.
Rows that stand in the JSON file are not run again. The table is Markdown.
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
from mtmm_jax.benchmarks.recipes.runs import TrainingRun, config_of
from mtmm_jax.benchmarks.tables.result_table import Board, arguments, names_of, seeds_of, spread
from mtmm_jax.command import guarded, prepare_jax

QUICK = 10  # steps
TASK, SOURCE, TARGET = "category", "noto", "twemoji"
SPLITS = ("validation", "test")
PASSES = 3  # over the target, for its statistics


@dataclasses.dataclass(frozen=True)
class Way:
    """A row of the table.

    Attributes:
        what: in words.
        run: its config.
        statistics: whether the batch statistics are those of the target alone, after training.
        labels: whether it sees labels of the target.
    """

    what: str
    run: TrainingRun
    statistics: bool = False
    labels: bool = False


WAYS: dict[str, Way] = {
    "source_only": Way("source only", TrainingRun("domain_source_only")),
    "adabn": Way(
        "batch statistics of the target", TrainingRun("domain_source_only"), statistics=True
    ),
    "coral": Way("CORAL", TrainingRun("domain_coral")),
    "mmd": Way("MMD", TrainingRun("domain_mmd")),
    "adversarial": Way("adversarial", TrainingRun("domain_adversarial")),
    "translation": Way("adversarial translation", TrainingRun("domain_translation")),
    "names": Way("names of both", TrainingRun("domain_names")),
    "sequential": Way(
        "sequential, a tenth of the labels",
        TrainingRun("domain_sequential", how="fit", after=TrainingRun("domain_source_only")),
        labels=True,
    ),
    "joint": Way("joint, all labels", TrainingRun("domain_joint"), labels=True),
    "target_only": Way("target only", TrainingRun("domain_target_only"), labels=True),
}
ENDS = ("source_only", "target_only")


def key_of(name: str, steps: int | None) -> dict[str, Any]:
    """The key of a way's rows in the JSON file."""
    return {"way": name, **recipe_runs.key_of(WAYS[name].run, steps)}


def rows_of(
    name: str, seeds: Sequence[int], steps: int | None, folder: Path
) -> Iterator[dict[str, Any]]:
    """One row a seed: the category's accuracy on the target's held-out splits."""
    way = WAYS[name]
    if way.run.after is not None:  # the validation split chose the checkpoint
        for row in recipe_runs.fit(way.run, seeds, steps, folder):
            yield {"seed": row["seed"], "validation": None, "test": round(row["test"][TASK], 4)}
        return
    from mtmm_jax.benchmarks.tables.short_runs import ShortRun

    trained = ShortRun(config_of(way.run, steps))
    for seed in seeds:
        variables = trained.train(seed)
        if way.statistics:
            variables = adapted(trained.experiment, variables, TARGET, PASSES)
        metrics = {
            split: round(float(trained.metrics(trained.evaluate(variables, split))[TASK]), 4)
            for split in SPLITS
        }
        yield {"seed": seed, **metrics}


def adapted(experiment: Any, variables: Any, target: str, passes: int = 1) -> Any:
    """The variables with batch statistics of the target's training inputs alone.

    AdaBN (Li et al. 2016): no parameter moves and no label is read, so that what is normalised
    away is the target's own mean and deviation. The running averages go through the drawings
    `passes` times, in training mode.
    """
    import jax

    from mtmm_jax import data

    config = experiment.config
    mine = {**config["data"], "trained": [target]}
    source = data.build(mine)
    model, size = experiment.model, config["batch_size"]

    @jax.jit
    def move(variables: Any, inputs: Any, key: Any) -> Any:
        return model.trunk(variables, inputs, train=True, key=key)[1].get("batch_stats", {})

    batches = iter(source.train(size, seed=config["seed"]))
    key = jax.random.key(config["seed"])
    for step in range(passes * round(source.epoch_steps(size))):
        outputs = move(variables, next(batches)["inputs"], jax.random.fold_in(key, step))
        variables = {**variables, "batch_stats": {**variables["batch_stats"], **outputs}}
    return variables


def recovered(board: Board, name: str, split: str, steps: int | None) -> float | None:
    """The share of the gap, over the means of the seeds; None where an end of it is not known."""
    means = {}
    for way in (*ENDS, name):
        values = [row[split] for row in board.find(**key_of(way, steps))]
        known = [value for value in values if value is not None]
        if not known:
            return None
        means[way] = float(np.mean(known))
    low, high = (means[end] for end in ENDS)
    return (means[name] - low) / (high - low) if high != low else None


def table(board: Board, names: Sequence[str], steps: int | None = None) -> str:
    """Markdown: a line for each way that was run, accuracies as mean ± standard deviation."""
    lines = [
        "| way | config | target's labels | validation | test | of the gap (validation, test) |",
        "|---|---|---|---|---|---|",
    ]
    for name in names:
        mine = board.find(**key_of(name, steps))
        if not mine:
            continue
        way = WAYS[name]
        shares = [recovered(board, name, split, steps) for split in SPLITS]
        cells = [
            way.what,
            f"`{way.run.config}`",
            "yes" if way.labels else "no",
            *(spread([row[split] for row in mine]) for split in SPLITS),
            ", ".join("-" if share is None else f"{share:.0%}" for share in shares),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def best(board: Board, steps: int | None = None, split: str = "test") -> tuple[str, float] | None:
    """The way without labels of the target that recovers most, and how much."""
    found: Mapping[str, float | None] = {
        name: recovered(board, name, split, steps)
        for name, way in WAYS.items()
        if not way.labels and name not in ENDS
    }
    known = {name: share for name, share in found.items() if share is not None}
    return max(known.items(), key=lambda pair: pair[1]) if known else None


def parser() -> argparse.ArgumentParser:
    p = arguments(
        "domains",
        "How much of the gap between two drawing styles each adaptation recovers.",
        only="names parted by commas, such as coral,adversarial",
        quick=QUICK,
        jobs=True,
    )
    p.add_argument("--workdir", default="runs/domains", help="of runs that need a folder")
    return p


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    names = names_of(options.only, WAYS, "way")
    prepare_jax()

    board, folder = Board(options.json), Path(options.workdir)
    steps = QUICK if options.quick else None
    seeds = seeds_of(options.seeds, options.quick)
    with board.helped("mtmm_jax.benchmarks.studies.domains", argv, options.jobs):
        for number, name in enumerate(names, start=1):
            title = f"{number}/{len(names)} {WAYS[name].what}"
            run = functools.partial(rows_of, name, steps=steps, folder=folder)
            board.fill(title, key_of(name, steps), seeds, run)
    print(table(board, list(WAYS), steps))
    if (found := best(board, steps)) is not None:
        print(
            f"\nbest without labels of the target: {WAYS[found[0]].what}, {found[1]:.0%} of the gap"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
