"""`python -m mtmm_jax.report --workdir runs/emoji`: the report of a run, written again."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mtmm_jax.command import console, guarded, trust_option


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m mtmm_jax.report",
        description="Writes report.html from what a finished run's folder holds.",
    )
    p.add_argument("--workdir", required=True, help="the run's folder")
    p.add_argument("--figures", help="a folder for the report's pictures as PNG files")
    trust_option(p)
    return p


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)

    from mtmm_jax.analysis import save_figures, write_report
    from mtmm_jax.store.workdir import Workdir

    workdir = Workdir.at(arguments.workdir)
    write_report(workdir, bool(arguments.trust_paths))
    console().print(f"report       {workdir.report}", soft_wrap=True)
    if arguments.figures:
        for path in save_figures(workdir, Path(arguments.figures)):
            console().print(f"picture      {path}", soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
