"""`python -m mtmm_jax.export --workdir runs/emoji --out emoji.zip`: a run as one portable file."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from mtmm_jax.command import console, guarded, prepare_jax


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m mtmm_jax.export",
        description="Writes the best checkpoint's predict function as one file, parameters and "
        "tokenizers in it, that needs JAX and NumPy to run and nothing of this package.",
        epilog="From Python: mtmm_jax.inference.exported.load(FILE).predict({'image': {'x': x}}); "
        "without the package: unzip FILE load.py, and import load.",
        allow_abbrev=False,
    )
    p.add_argument("--workdir", required=True, help="the run's folder")
    p.add_argument("--out", required=True, help="the file to write, such as emoji.zip")
    p.add_argument("--batch", default="any", help="rows of a batch: any (default) or a number")
    p.add_argument("--platforms", default="cpu", help="of cpu, cuda, rocm, tpu: several by commas")
    p.add_argument("--int8", action="store_true", help="keep kernels and embeddings in eight bits")
    p.add_argument("--tasks", help="those to tell, by commas; all by default")
    return p


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    prepare_jax()

    from mtmm_jax.inference.export import export_run
    from mtmm_jax.inference.finished import open_run
    from mtmm_jax.registry import ConfigError

    try:
        rows = None if arguments.batch == "any" else int(arguments.batch)
    except ValueError as error:
        raise ConfigError(
            f"--batch: {arguments.batch!r} is neither 'any' nor a number from 1 upwards"
        ) from error
    platforms = [name.strip() for name in arguments.platforms.split(",") if name.strip()]
    tasks = arguments.tasks.split(",") if arguments.tasks else None
    run = open_run(arguments.workdir)
    options = {"rows": rows, "platforms": platforms, "tasks": tasks, "int8": arguments.int8}
    path = export_run(run, arguments.out, **options)
    size = path.stat().st_size / 1e6
    console().print(
        f"step {run.step} for {', '.join(platforms)}, batches of {rows or 'any'} rows: "
        f"{size:.1f} MB in {path}",
        highlight=False,
        soft_wrap=True,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
