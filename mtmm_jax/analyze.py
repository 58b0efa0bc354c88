"""`python -m mtmm_jax.analyze --workdir runs/emoji`: what a run's modalities and tasks do."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from mtmm_jax.command import console, guarded, prepare_jax, trust_option


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m mtmm_jax.analyze",
        description="What each modality contributes and says of the labels, how alike they are, "
        "how robust the model is to damage of each, what it looks at, and what it costs. Writes "
        "analysis.json and the report.",
        epilog="Values of the data may be changed, for example --config.data.text=name.",
    )
    p.add_argument("--workdir", required=True, help="the run's folder")
    p.add_argument("--split", default="validation", help="train, validation (default) or test")
    p.add_argument("--examples", type=int, default=512, help="how many at most, 512 by default")
    trust_option(p)
    return p


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    arguments, overrides = parser().parse_known_args(argv)
    prepare_jax()

    from mtmm_jax.analysis import save_study, study, write_report
    from mtmm_jax.inference.finished import open_run
    from mtmm_jax.registry import choose
    from mtmm_jax.store.config import mutable
    from mtmm_jax.store.workdir import Workdir
    from mtmm_jax.training import apply_overrides

    choose(arguments.split, ("train", "validation", "test"), "--split", "split")
    workdir = Workdir.at(arguments.workdir)
    workdir.read("results.json")
    config = apply_overrides(mutable(workdir.config()), overrides)
    trusted = bool(arguments.trust_paths)
    run = open_run(arguments.workdir, {**config.to_dict(), "devices": 1}, trust_paths=trusted)
    out = console()
    with _bar(out) as bar:

        def stage(name: str, count: int) -> Any:
            if bar.disable:
                out.print(f"{name} ({count})", highlight=False)
            task = bar.add_task(name, total=count)
            return lambda: bar.advance(task)

        report, arrays = study(run, arguments.split, arguments.examples, stage)
    save_study(workdir, report, arrays)
    write_report(workdir, trusted)
    show(report, arguments.workdir)
    out.print(f"numbers      {workdir.path / 'analysis.json'}", soft_wrap=True)
    out.print(f"report       {workdir.report}", soft_wrap=True)
    return 0


def _bar(out: Any) -> Any:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as Left

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
    )
    return Progress(*columns, Left(), console=out, disable=not out.is_terminal)


def show(report: dict[str, Any], name: str) -> None:
    """The tables of an analysis."""
    from rich.table import Table

    from mtmm_jax.analysis import pages

    where = f"{name}, step {report['step']}, {report['examples']} of {report['split']}"
    tables = {
        f"contribution of each modality (Shapley): {where}": pages.contribution_rows(
            report["contribution"]
        ),
        "with some of the modalities": pages.subset_rows(report["subsets"]),
        "affinity of the modalities": pages.affinity_rows(report["affinity"]),
        f"{pages.SELECTION} (mutual information)": pages.selection_rows(report["selection"]),
        "robustness": pages.robustness_rows(report["robustness"]),
        "cost": pages.cost_rows(report["cost"]),
    }
    out = console()
    for title, (head, *rows) in tables.items():
        table = Table(title=title)
        for i, column in enumerate(head):
            table.add_column(column, justify="left" if i == 0 else "right")
        for row in rows:
            table.add_row(*row)
        out.print(table)
    suggestion = report["affinity"]["suggestion"]
    out.print(f"a fusion to try first: {suggestion['fusion']}: {suggestion['reason']}")


if __name__ == "__main__":
    sys.exit(main())
