"""What an absent modality costs, with and without modality dropout in training.

    python -m mtmm_jax.benchmarks.missing --config emoji --task category --json missing.json
    python -m mtmm_jax.benchmarks.missing --fusions concat transformer tensor --ways mask zero

For each fusion, each way to meet a missing modality (`model.missing`) and each rate of modality
dropout: the figure with everything, and with any one modality taken away; beside them, what models
reach that never had that modality: as much as the others can tell. What dropout loses by the
absence that costs most is told as a share of what the plain model loses by it.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mtmm_jax.benchmarks.board import Board, arguments, seeds_of, spread
from mtmm_jax.command import console, guarded, prepare_jax
from mtmm_jax.registry import choose, entry_of

ALL = "all"


def parser() -> argparse.ArgumentParser:
    about = "What an absent modality costs, with and without modality dropout."
    p = arguments("missing", about, config_flags=True)
    p.add_argument("--config", default="emoji", help="a config file, or a name (default: emoji)")
    p.add_argument("--task", default="category", help="whose headline counts (default: category)")
    p.add_argument("--dropout", type=float, default=0.3, help="the rate beside 0 (default: .3)")
    p.add_argument("--ways", nargs="+", default=["mask"], help="of model.missing (default: mask)")
    p.add_argument("--fusions", nargs="+", help="kinds (default: the config's)")
    return p


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    options, overrides = parser().parse_known_args(argv)
    prepare_jax()

    from rich.progress import track

    from mtmm_jax import training
    from mtmm_jax.benchmarks.short_runs import ShortRun
    from mtmm_jax.fusion import FUSIONS, MISSING

    base = training.apply_overrides(training.load(options.config), overrides)
    own = entry_of(base.model.fusion)["kind"]
    fusions = options.fusions or [own]
    for kind in options.fusions or ():
        choose(kind, FUSIONS, "--fusions", "fusion")
    for way in options.ways:
        choose(way, ("mask", *MISSING), "--ways", "way")
    choose(options.task, base.tasks, "--task", "task")
    names = tuple(name for name, spec in base.model.encoders.items() if spec is not None)
    seeds, board = seeds_of(options.seeds), Board(options.json)
    rates = (0.0, options.dropout)
    settings = [(f, way, rate, None) for f in fusions for way in options.ways for rate in rates]
    settings += [(own, "never had", 0.0, name) for name in names]
    common = {"config": options.config, "overrides": overrides, "task": options.task}
    common["steps"] = base.steps
    for fusion, way, rate, gone in track(settings, description="missing", console=console()):
        key = {**common, "fusion": fusion, "missing": way, "dropout": rate, "without": gone}
        todo = board.left(seeds, **key)
        short = ShortRun(changed(base, fusion, way, rate, gone)) if todo else None
        for seed in todo:
            variables = short.train(seed)
            seen = {f"no {m}": [n for n in names if n != m] for m in names}
            seen = {f"no {gone}": None} if gone else {ALL: None} | seen
            figures = {}
            for label, only in seen.items():
                results = short.evaluate(variables, "test", only)
                figures[label] = round(short.figures(results)[options.task], 4)
            board.add({**key, "seed": seed, "figures": figures})
    console().print(table(board.find(**common), options.task))
    return 0


def changed(base: Any, fusion: str, way: str, rate: float, gone: str | None) -> Any:
    """The config with a way to meet what is missing, or one that never has a modality."""
    from mtmm_jax.benchmarks.short_runs import without

    config = copy.deepcopy(base)
    with config.unlocked(), config.ignore_type():
        config.model.modality_dropout = rate
        if fusion != entry_of(base.model.fusion)["kind"]:
            config.model.fusion = fusion
        if gone is None:
            config.model.missing = way
        else:
            without(config, [gone])
    return config


def table(rows: Sequence[Mapping[str, Any]], task: str) -> Any:
    """A line for each setting: the figure with everything, and without each modality."""
    from rich.table import Table

    out = Table(title=f"{task}, test: mean ± sd")
    labels = list(dict.fromkeys(label for row in rows for label in row["figures"]))
    for name in ("fusion", "missing", "dropout", "seeds", *labels, "lost of plain's"):
        out.add_column(name)
    kinds = ("fusion", "missing", "dropout")
    for kind in dict.fromkeys(tuple(row[k] for k in kinds) for row in rows):
        mine = [row for row in rows if tuple(row[k] for k in kinds) == kind]
        found = {
            label: [r["figures"][label] for r in mine if label in r["figures"]] for label in labels
        }
        cells = [spread(values) if values else "" for values in found.values()]
        same = [row for row in rows if tuple(row[k] for k in kinds[:2]) == kind[:2]]
        share = lost(mine, same) if kind[2] else None
        count = len({row["seed"] for row in mine})
        told = "" if share is None else f"{share[1]:.2f} ({share[0]})"
        out.add_row(*kind[:2], f"{kind[2]:g}", str(count), *cells, told)
    return out


def lost(
    rows: Sequence[Mapping[str, Any]], same: Sequence[Mapping[str, Any]]
) -> tuple[str, float] | None:
    """The absence that costs the plain model most, and the share of it that `rows` lose by it;
    None where nothing costs it anything."""
    plain = [row for row in same if row["dropout"] == 0]
    if not plain or ALL not in plain[0]["figures"]:
        return None

    def cost(of: Sequence[Mapping[str, Any]], label: str) -> float:
        return float(np.mean([row["figures"][ALL] - row["figures"][label] for row in of]))

    label = max((k for k in plain[0]["figures"] if k != ALL), key=lambda k: cost(plain, k))
    whole = cost(plain, label)
    return (label, cost(rows, label) / whole) if whole > 0 else None


if __name__ == "__main__":
    sys.exit(main())
