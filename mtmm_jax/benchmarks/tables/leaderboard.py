"""All fusions and sharings on the same data, steps and seeds, next to plain baselines.

    python -m mtmm_jax.benchmarks.tables.leaderboard --json leaderboard.json --plot leaderboard.png

Every entry is the data set's config in `BASES` with one thing changed. The baselines are one
modality alone and the late Transformer, each at the best of three learning rates on validation;
all others take the config's rate. Rows that stand in the JSON file are not run again.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mtmm_jax.benchmarks.tables.bar_charts import bars, panels, save
from mtmm_jax.benchmarks.tables.result_table import Board, arguments, seeds_of
from mtmm_jax.command import console, guarded, prepare_jax
from mtmm_jax.registry import ConfigError, choose

# Steps of about 30 s on two cores, and the quick ones.
BASES = {"digits": (300, 30), "films": (300, 30), "emoji": (200, 20)}
RATES = (0.5, 1.0, 2.0)
QUICK = ("fusion concat", "fusion transformer", "sharing mmoe", "decision mean", "only .*")
# What the stages are shown with: fusions that keep tokens for the trunk or the second half.
STAGED = {
    "early join": {"kind": "join", "stage": "early"},
    "early bottleneck": {"kind": "bottleneck", "stage": "early"},
    "early_raw join": {"kind": "join", "stage": "early_raw"},
    "middle concat": {"kind": "concat", "stage": "middle"},
    "middle bottleneck": {"kind": "bottleneck", "stage": "middle"},
    "middle_shared join": {"kind": "join", "stage": "middle_shared"},
}


def entries(encoders: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Name -> what is changed in `config.model`."""
    from mtmm_jax.fusion import DECISIONS, FUSIONS
    from mtmm_jax.sharing import SHARINGS

    found: dict[str, dict[str, Any]] = {f"only {name}": {"only": name} for name in encoders}
    found |= {f"fusion {kind}": {"fusion": {"kind": kind}} for kind in FUSIONS}
    found |= {name: {"fusion": spec} for name, spec in STAGED.items()}
    decisions = {kind: {"kind": kind, "stage": "decision"} for kind in DECISIONS}
    found |= {f"decision {kind}": {"fusion": spec} for kind, spec in decisions.items()}
    found |= {f"sharing {kind}": {"sharing": {"kind": kind}} for kind in SHARINGS}
    return found


def config_of(data: str, changes: Mapping[str, Any], steps: int, rate: float) -> Any:
    """The data set's config with one entry's changes."""
    from mtmm_jax import training
    from mtmm_jax.benchmarks.tables.short_runs import without

    config = training.load(data)
    with config.unlocked(), config.ignore_type():
        config.steps = steps
        config.optimizer.learning_rate *= rate
        for key in ("fusion", "sharing"):
            if key in changes:
                config.model[key] = changes[key]
        if "only" in changes:
            without(config, set(config.model.encoders) - {changes["only"]})
        for name, task in list(config.tasks.items()):
            # Tasks that do not read what is fused are no test of it.
            if task is not None and task.get("reads", "fused") != "fused":
                config.tasks[name] = None
    return config


def tuned(name: str) -> bool:
    """Whether an entry is a baseline, whose learning rate is chosen on validation."""
    return name.startswith("only ") or name == "fusion transformer"


def runs(
    board: Board, data: str, name: str, changes: Mapping[str, Any], seeds: Sequence[int], steps: int
) -> Iterator[dict[str, Any]]:
    """The missing rows of one entry."""
    from mtmm_jax.benchmarks.tables.short_runs import ShortRun

    key = {"data": data, "entry": name, "steps": steps}
    if board.find(**key, refused=True):
        return
    rates = RATES if tuned(name) else (1.0,)
    for rate in rates:
        # The rate is chosen by the first seed; the others run at the chosen one alone.
        if not board.left(seeds[:1], **key, rate=rate):
            continue
        try:
            short = ShortRun(config_of(data, changes, steps, rate))
        except ConfigError as error:
            yield {**key, "refused": True, "reason": str(error)}
            return
        yield {**key, "rate": rate, **short.row(seeds[0])}
    tried = [row for rate in rates for row in board.find(**key, rate=rate, seed=seeds[0])]
    best = max(tried, key=lambda row: row["validation_mean"])["rate"]
    missing = board.left(seeds[1:], **key, rate=best)
    if missing:
        short = ShortRun(config_of(data, changes, steps, best))
        for seed in missing:
            yield {**key, "rate": best, **short.row(seed)}


def standings(rows: Sequence[Mapping[str, Any]], data: str, steps: int) -> list[dict[str, Any]]:
    """A line for each entry, the best first: means and deviations over its seeds."""
    mine = [r for r in rows if r["data"] == data and r["steps"] == steps and "refused" not in r]
    lines = []
    for name in dict.fromkeys(row["entry"] for row in mine):
        own = [row for row in mine if row["entry"] == name]
        first = min(row["seed"] for row in own)
        rate = max(
            (row for row in own if row["seed"] == first), key=lambda row: row["validation_mean"]
        )["rate"]
        own = [row for row in own if row["rate"] == rate]
        tasks = own[0]["test"]
        lines.append(
            {
                "entry": name,
                "seeds": len(own),
                "rate": rate,
                "parameters": own[0]["parameters"],
                "seconds": float(np.median([row["seconds"] for row in own])),
                "values": [row["test_mean"] for row in own],
                "mean": float(np.mean([row["test_mean"] for row in own])),
                "spread": float(np.std([row["test_mean"] for row in own])),
                **{task: float(np.mean([row["test"][task] for row in own])) for task in tasks},
            }
        )
    return sorted(lines, key=lambda line: -line["mean"])


def table(lines: Sequence[Mapping[str, Any]], title: str) -> Any:
    from rich.table import Table
    from rich.text import Text

    fixed = ("entry", "seeds", "rate", "parameters", "seconds", "values", "mean", "spread")
    out = Table(title=title)
    for name in ("", "entry", "mean ± sd", *(k for k in lines[0] if k not in fixed)):
        out.add_column(name)
    for column in ("rate", "parameters", "s"):
        out.add_column(column, justify="right")
    for place, line in enumerate(lines, start=1):
        metrics = [f"{line[k]:.3f}" for k in line if k not in fixed]
        style = "bold" if tuned(line["entry"]) else ""
        out.add_row(
            str(place),
            Text(line["entry"], style=style),
            f"{line['mean']:.3f} ± {line['spread']:.3f}",
            *metrics,
            f"{line['rate']:g}",
            f"{line['parameters']:,}",
            f"{line['seconds']:.0f}",
        )
    return out


def plot(standing: Mapping[str, Sequence[Mapping[str, Any]]], path: str) -> None:
    """A panel for each data set, from its `standings`."""
    figure, axes = panels(len(standing), max(map(len, standing.values())))
    for panel, (title, lines) in zip(axes, standing.items(), strict=True):
        values = {line["entry"]: line["values"] for line in lines}
        bars(panel, values, list(filter(tuned, values)))
        least, most = min(map(min, values.values())), max(map(max, values.values()))
        wide = max(most - least, 0.01)  # one row alone has no width
        panel.set_xlim(least - 0.05 * wide, most + 0.02 * wide)
        panel.set_title(f"{title}; orange: baselines, tuned", fontsize=9)
    save(figure, path)


def parser() -> argparse.ArgumentParser:
    p = arguments(
        "leaderboard",
        "Ranks all fusions and sharings next to plain baselines.",
        only="a regular expression: entries to run, such as 'fusion .*'",
        quick="few entries, few steps, one seed",
    )
    p.add_argument("--data", nargs="+", default=list(BASES), help="digits films emoji (default)")
    p.add_argument("--steps", type=int, help="of each run; the default is set for each data set")
    p.add_argument("--plot", help="a picture, such as leaderboard.png")
    return p


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    prepare_jax()

    from rich.progress import track

    from mtmm_jax import training

    out = console()
    board = Board(options.json)
    seeds = seeds_of(options.seeds, options.quick)
    standing = {}
    for data in options.data:
        choose(data, BASES, "--data", "data set")
        steps = options.steps or BASES[data][1 if options.quick else 0]
        plan = entries(list(training.load(data).model.encoders))
        wanted = "|".join(QUICK) if options.quick and not options.only else options.only
        chosen = {k: v for k, v in plan.items() if not wanted or re.fullmatch(wanted, k)}
        if not chosen:
            raise ConfigError(f"--only: {wanted!r} matches none of: {', '.join(plan)}")
        for name in track(chosen, description=data, console=out):
            for row in runs(board, data, name, chosen[name], seeds, steps):
                board.add(row)
        lines = standings(board.rows, data, steps)
        standing[f"{data}, test, {steps} steps"] = lines
        out.print(table(lines, f"{data}, test, {steps} steps; bold: baselines, tuned"))
        for row in board.find(data=data, steps=steps, refused=True):
            out.print(f"{row['entry']}: {row['reason']}", highlight=False)
    if options.plot:
        plot(standing, options.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
