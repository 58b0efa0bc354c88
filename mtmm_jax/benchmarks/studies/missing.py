"""The cost of an absent modality, with and without modality dropout in training.

    python -m mtmm_jax.benchmarks.studies.missing --config emoji --task category --json missing.json
    python -m mtmm_jax.benchmarks.studies.missing --fusions concat tensor --ways mask zero
    python -m mtmm_jax.benchmarks.studies.missing --fusions tensor --dropout text=.6 --unimodal year

For each fusion, each way to meet a missing modality (`model.missing`) and each rate of modality
dropout: the metric with everything, and with any one modality taken away; next to them, what models
reach that never had that modality: as much as the others can tell. With --unimodal, tasks
are also trained by heads on each modality alone, without dropout and with it. What a model loses by
the absence that costs the plain one most is given as a share of the plain one's loss.
"""

from __future__ import annotations

import argparse
import copy
import functools
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mtmm_jax.benchmarks.tables.result_table import Board, arguments, names_of, seeds_of, spread
from mtmm_jax.command import console, guarded, prepare_jax
from mtmm_jax.registry import ConfigError, choose, entry_of

ALL = "all"
KINDS = PLAIN, HEADS, DROPOUT, NEVER = "plain", "heads", "dropout", "never had"
SETTING = ("fusion", "missing", "dropout", "unimodal", "without")


def parser() -> argparse.ArgumentParser:
    about = "What an absent modality costs, with and without modality dropout."
    only = f"of {', '.join(KINDS)}, parted by commas"
    p = arguments("missing", about, only=only, jobs=True, config_flags=True)
    p.add_argument("--config", default="emoji", help="a config file, or a name (default: emoji)")
    p.add_argument("--task", default="category", help="whose headline counts (default: category)")
    p.add_argument(
        "--dropout", default="0.3", help="in addition to 0, or text=.6,image=.4 (default: .3)"
    )
    unimodal = "tasks that have heads on each modality alone too, without dropout and with it"
    p.add_argument("--unimodal", nargs="+", metavar="TASK", help=unimodal)
    p.add_argument("--ways", nargs="+", default=["mask"], help="of model.missing (default: mask)")
    p.add_argument("--fusions", nargs="+", help="kinds (default: the config's)")
    return p


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    options, overrides = parser().parse_known_args(argv)
    prepare_jax()

    from mtmm_jax import training
    from mtmm_jax.fusion import FUSIONS, MISSING

    base = training.apply_overrides(training.load(options.config), overrides)
    own = entry_of(base.model.fusion)["kind"]
    fusions, ways, unimodal = options.fusions or [own], options.ways, options.unimodal
    for kind in options.fusions or ():
        choose(kind, FUSIONS, "--fusions", "fusion")
    for way in ways:
        choose(way, ("mask", *MISSING), "--ways", "way")
    choose(options.task, base.tasks, "--task", "task")
    for name in unimodal or ():
        choose(name, base.tasks, "--unimodal", "task")
    names = tuple(name for name, spec in base.model.encoders.items() if spec is not None)
    kinds = names_of(options.only, KINDS, "kind of run")
    rates = {
        PLAIN: (0.0, None),
        HEADS: (0.0, unimodal),
        DROPOUT: (dropout_of(options.dropout), unimodal),
    }
    if not unimodal:
        del rates[HEADS]
        if kinds == [HEADS]:
            raise ConfigError("--only heads: of no task; --unimodal names some")
    settings = [
        (f, way, *rates[kind], None)
        for f in fusions
        for way in ways
        for kind in rates
        if kind in kinds
    ]
    settings += [(own, "never had", 0.0, None, name) for name in names if NEVER in kinds]
    common = {"config": options.config, "overrides": overrides, "task": options.task}
    common["steps"] = base.steps
    board, seeds = Board(options.json), seeds_of(options.seeds)
    with board.helped("mtmm_jax.benchmarks.studies.missing", argv, options.jobs):
        for number, setting in enumerate(settings, start=1):
            key = {**common, **dict(zip(SETTING, setting, strict=True))}
            title = f"{number}/{len(settings)} {' '.join(map(str, filter(None, setting)))}"
            run = functools.partial(rows_of, base, setting, names, options.task)
            board.fill(title, key, seeds, run)
    console().print(table(board.find(**common), options.task))
    return 0


def rows_of(
    base: Any, setting: Sequence[Any], names: Sequence[str], task: str, seeds: Sequence[int]
) -> Iterator[dict[str, Any]]:
    """A row for each seed: the metric with everything the model has, and without each of it."""
    from mtmm_jax.benchmarks.tables.short_runs import ShortRun

    short, gone = ShortRun(changed(base, *setting)), setting[-1]
    left = {f"no {m}": [n for n in names if n != m] for m in names}
    seen = {f"no {gone}": None} if gone else {ALL: None} | left
    for seed in seeds:
        variables = short.train(seed)
        results = {label: short.evaluate(variables, "test", only) for label, only in seen.items()}
        metrics = {label: round(short.metrics(one)[task], 4) for label, one in results.items()}
        yield {"seed": seed, "metrics": metrics}


def dropout_of(text: str) -> float | str:
    """A rate, or rates of single modalities in one form, such as image=0.4,text=0.6."""
    try:
        if "=" not in text:
            return float(text)
        pairs = sorted(part.split("=") for part in text.split(","))
        return ",".join(f"{name.strip()}={float(rate):g}" for name, rate in pairs)
    except ValueError as error:
        raise ConfigError(
            f"--dropout: {text!r} is neither a rate nor a list such as text=.6,image=.4"
        ) from error


def changed(
    base: Any,
    fusion: str,
    way: str,
    dropout: float | str,
    unimodal: Sequence[str] | None,
    gone: str | None,
) -> Any:
    """The config with a way to meet what is missing, or one that never has a modality."""
    from ml_collections import ConfigDict

    from mtmm_jax.benchmarks.tables.short_runs import without

    config = copy.deepcopy(base)
    with config.unlocked(), config.ignore_type():
        pairs = dropout.split(",") if isinstance(dropout, str) else ()
        rates = {name: float(rate) for name, rate in (pair.split("=") for pair in pairs)}
        config.model.modality_dropout = ConfigDict(rates) if rates else dropout
        for task in unimodal or ():
            config.tasks[task].unimodal = True
        if fusion != entry_of(base.model.fusion)["kind"]:
            config.model.fusion = fusion
        if gone is None:
            config.model.missing = way
        else:
            without(config, [gone])
    return config


def table(rows: Sequence[Mapping[str, Any]], task: str) -> Any:
    """A line for each setting: the metric with everything, and without each modality."""
    from rich.table import Table

    out = Table(title=f"{task}, test: mean ± sd")
    labels = list(dict.fromkeys(label for row in rows for label in row["metrics"]))
    for name in ("fusion", "missing", "dropout", "seeds", *labels, "lost of plain's"):
        out.add_column(name)

    def kind_of(row: Mapping[str, Any]) -> tuple[Any, ...]:
        return (*(row[k] for k in SETTING[:3]), tuple(row.get("unimodal") or ()))

    for kind in dict.fromkeys(map(kind_of, rows)):
        mine = [row for row in rows if kind_of(row) == kind]
        found = {
            label: [r["metrics"][label] for r in mine if label in r["metrics"]] for label in labels
        }
        cells = [spread(values) if values else "" for values in found.values()]
        same = [row for row in rows if row["fusion"] == kind[0]]
        share = None if plain(mine[0]) else lost(mine, same)
        count = len({row["seed"] for row in mine})
        loss = "" if share is None else f"{share[1]:.2f} ({share[0]})"
        dropout = " + ".join((str(kind[2]), *kind[3]))
        out.add_row(*kind[:2], dropout, str(count), *cells, loss)
    return out


def plain(row: Mapping[str, Any]) -> bool:
    """Nothing was done about modalities that may be missing."""
    return row["missing"] == "mask" and row["dropout"] == 0 and not row.get("unimodal")


def lost(
    rows: Sequence[Mapping[str, Any]], same: Sequence[Mapping[str, Any]]
) -> tuple[str, float] | None:
    """The absence that costs the plain model most, and the share of it that `rows` lose by it;
    None where nothing costs it anything."""
    whole = [row["metrics"] for row in same if plain(row) and ALL in row["metrics"]]
    if not whole or ALL not in rows[0]["metrics"]:
        return None

    def cost(metrics: Sequence[Mapping[str, float]], label: str) -> float:
        return float(np.mean([one[ALL] - one[label] for one in metrics]))

    label = max((k for k in whole[0] if k != ALL), key=lambda k: cost(whole, k))
    most = cost(whole, label)
    return (label, cost([row["metrics"] for row in rows], label) / most) if most > 0 else None


if __name__ == "__main__":
    sys.exit(main())
