"""What an absent modality costs, with and without modality dropout in training.

    python -m mtmm_jax.benchmarks.missing --config emoji --task category --json missing.json

For each way to meet a missing modality (`model.missing`) and each rate of modality dropout: the
figure with everything, and with any one modality taken away; beside them, what models reach that
never had that modality: as much as the others can tell.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Sequence
from typing import Any

from mtmm_jax.benchmarks.board import Board, arguments, seeds_of, spread
from mtmm_jax.command import console, guarded, prepare_jax
from mtmm_jax.registry import choose, entry_of


def parser() -> argparse.ArgumentParser:
    about = "What an absent modality costs, with and without modality dropout."
    p = arguments("missing", about, config_flags=True)
    p.add_argument("--config", default="emoji", help="a config file, or a name (default: emoji)")
    p.add_argument("--task", default="category", help="whose headline counts (default: category)")
    p.add_argument("--dropout", type=float, default=0.3, help="the rate beside 0 (default: .3)")
    p.add_argument("--ways", nargs="+", default=["mask"], help="of model.missing (default: mask)")
    return p


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    options, overrides = parser().parse_known_args(argv)
    prepare_jax()

    from rich.progress import track

    from mtmm_jax import training
    from mtmm_jax.benchmarks.short_runs import ShortRun
    from mtmm_jax.fusion import MISSING

    for way in options.ways:
        choose(way, ("mask", *MISSING), "--ways", "way")
    base = training.apply_overrides(training.load(options.config), overrides)
    choose(options.task, base.tasks, "--task", "task")
    names = tuple(name for name, spec in base.model.encoders.items() if spec is not None)
    seeds, board = seeds_of(options.seeds), Board(options.json)
    spec = entry_of(base.model.fusion)
    fusion = f"{spec.get('stage', 'late')} {spec['kind']}"
    settings = [(way, rate, None) for way in options.ways for rate in (0.0, options.dropout)]
    settings += [("never had", 0.0, name) for name in names]
    for way, rate, without in track(settings, description="missing", console=console()):
        key = {"config": options.config, "fusion": fusion, "steps": base.steps}
        key |= {"missing": way, "dropout": rate, "without": without}
        todo = board.left(seeds, **key)
        short = ShortRun(changed(base, way, rate, without)) if todo else None
        for seed in todo:
            variables = short.train(seed)
            seen = {f"no {m}": [n for n in names if n != m] for m in names}
            seen = {f"no {without}": None} if without else {"all": None} | seen
            figures = {}
            for label, only in seen.items():
                results = short.evaluate(variables, "test", only)
                figures[label] = round(short.figures(results)[options.task], 4)
            board.add({**key, "seed": seed, "task": options.task, "figures": figures})
    mine = board.find(config=options.config, fusion=fusion, steps=base.steps)
    console().print(table(mine, options.task))
    return 0


def changed(base: Any, way: str, rate: float, gone: str | None) -> Any:
    """The config with a way to meet what is missing, or one that never has a modality."""
    from mtmm_jax.benchmarks.short_runs import without

    config = copy.deepcopy(base)
    with config.unlocked(), config.ignore_type():
        config.model.modality_dropout = rate
        if gone is None:
            config.model.missing = way
        else:
            without(config, [gone])
    return config


def table(rows: Sequence[dict[str, Any]], task: str) -> Any:
    """A line for each setting: the figure with everything, and without each modality."""
    from rich.table import Table

    out = Table(title=f"{task}, test: mean ± sd")
    labels = list(dict.fromkeys(label for row in rows for label in row["figures"]))
    for name in ("missing", "dropout", "seeds", *labels):
        out.add_column(name)
    for way, rate in dict.fromkeys((row["missing"], row["dropout"]) for row in rows):
        mine = [row for row in rows if (row["missing"], row["dropout"]) == (way, rate)]
        found = {
            label: [r["figures"][label] for r in mine if label in r["figures"]] for label in labels
        }
        cells = [spread(values) if values else "" for values in found.values()]
        out.add_row(way, f"{rate:g}", str(len({row["seed"] for row in mine})), *cells)
    return out


if __name__ == "__main__":
    sys.exit(main())
