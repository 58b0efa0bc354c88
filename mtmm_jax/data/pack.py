"""Decodes the files of a table once, into shards: `python -m mtmm_jax.data.pack TABLE --out DIR`.

A table is what `check` reads, Parquet with pictures or sounds as bytes, a WebDataset tar, or a
folder of such files. `data = {"kind": "packed", "path": DIR}` trains on it. Run again after a kill,
it makes what is missing. With `--part i/n` each of n hosts makes its shards, into one folder.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mtmm_jax.data.inspect.described import add_options, describe, tokenizers_of
from mtmm_jax.data.pipeline.source import SPLITS
from mtmm_jax.data.sources.manifest.progress import progress, say
from mtmm_jax.data.sources.manifest.source import check_limits
from mtmm_jax.data.sources.sharded.plan import (
    Plan,
    digest_of,
    load_plan,
    make_plan,
    reading_options,
    save_plan,
)
from mtmm_jax.data.sources.sharded.stream import Stream, open_stream
from mtmm_jax.data.sources.sharded.write import pack_part, pack_shards
from mtmm_jax.devices.machine import cores
from mtmm_jax.ranges import Count
from mtmm_jax.registry import ConfigError, check, one_line

_LOOK = 0.25  # seconds between two looks at how many shards there are


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m mtmm_jax.data.pack",
        description=__doc__.split("\n\n")[0],
        epilog="What the columns are is known from --config, from NAME.description.json next to "
        "NAME.jsonl, or from --modality and --target; otherwise it is guessed.",
        allow_abbrev=False,
    )
    add_options(p)
    p.add_argument("--out", required=True, metavar="DIR", help="the folder of the shards")
    p.add_argument("--part", default="0/1", metavar="I/N", help="of N hosts this is host I, from 0")
    p.add_argument("--workers", type=int, help="processes (default: one for each core)")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    arguments, rest = parser().parse_known_args(argv)
    try:
        if unknown := [word for word in rest if not word.startswith("--config.")]:
            raise ConfigError(f"pack: {unknown[0]!r} is not understood; see --help")
        _run(arguments, rest)
    except ConfigError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command resumes", file=sys.stderr)
        return 130
    return 0


def _run(arguments: argparse.Namespace, overrides: Sequence[str]) -> None:
    workers = check(arguments.workers or len(cores()), Count, "--workers")
    part = _part(arguments.part)
    found = describe(arguments, overrides, counted=False)
    say(found.origin)
    out = Path(arguments.out)
    stream = open_stream(found.path, check_limits(found.description.get("limits")))
    tokenizers = tokenizers_of(arguments.config, overrides)
    plan = _plan(out, stream, reading_options(found.description), tokenizers)
    mine = range(*(plan.shards * (part[0] + end) // part[1] for end in (0, 1)))
    missing = [number for number in plan.missing(out) if number in mine]
    start = time.monotonic()
    _pack(out, plan, stream, missing, workers)
    _summary(out, plan, len(missing), time.monotonic() - start)


def _part(text: str) -> tuple[int, int]:
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise ConfigError(f"--part: {text!r} is not I/N with 0 <= I < N, such as 0/4")
    return int(index), int(count)


def _plan(out: Path, stream: Stream, description: dict, tokenizers: dict[str, str]) -> Plan:
    """That of the folder, if it is of this table and these options; else a new one."""
    if (out / "pack.json").exists():
        plan = load_plan(out)
        if plan.header["digest"] != digest_of(stream, description, tokenizers):
            raise ConfigError(
                f"--out: {out} holds the rows of another table, or of other options; name another "
                "folder, or delete it"
            )
        return plan
    if out.exists() and (not out.is_dir() or any(out.glob("rows-*"))):
        raise ConfigError(f"--out: {out} is no folder of packed rows; name another one")
    with progress("reading", "read", "rows", stream.total) as advance:
        plan, _ = make_plan(stream, description, progress=advance, tokenizers=tokenizers)
    try:
        out.mkdir(parents=True, exist_ok=True)
        save_plan(out, plan)
    except OSError as error:
        raise ConfigError(f"--out: cannot write to {out}: {error.strerror or error}") from error
    seen, train = plan.header["fitted_on"]
    if seen < train:
        say(
            f"vocabularies, scales and categories of inputs are those of {seen:,} of {train:,} "
            "training rows, evenly spread; classes, labels and splits those of all rows"
        )
    return plan


def _pack(out: Path, plan: Plan, stream: Stream, missing: Sequence[int], workers: int) -> None:
    if not missing:
        return
    rows = sum(min(plan.shard_rows, plan.rows - number * plan.shard_rows) for number in missing)
    say(f"packing {rows:,} rows, shards: {len(missing):,}, into {out}, processes: {workers}")
    try:
        with progress("packing", "packed", "shards", len(missing)) as advance:
            if workers == 1:
                pack_shards(out, plan, stream, missing, progress=advance)
                return
            _in_processes(out, plan, stream, missing, min(workers, len(missing)), advance)
    except OSError as error:
        raise ConfigError(f"--out: cannot write to {out}: {error.strerror or error}") from error


def _in_processes(
    out: Path,
    plan: Plan,
    stream: Stream,
    missing: Sequence[int],
    workers: int,
    advance: Callable[[int], None],
) -> None:
    """Each process reads its part of the table and makes the shards of it.

    They end with this one, however it ends: behind the shard that each is at.
    """
    context = multiprocessing.get_context("spawn")
    table, me = os.fspath(stream.path), os.getpid()
    jobs = []
    ends = [len(missing) * i // workers for i in range(workers + 1)]
    for start, end in itertools.pairwise(ends):
        here, there = context.Pipe(duplex=False)
        job = context.Process(
            target=_work, args=(there, out, table, missing[start:end], me), daemon=True
        )
        job.start()
        there.close()
        jobs.append((job, here))
    while any(job.is_alive() for job, _ in jobs):
        advance(sum(plan.path(out, number).exists() for number in missing))
        time.sleep(_LOOK)
    for job, here in jobs:
        job.join()
        with contextlib.suppress(EOFError):
            raise ConfigError(here.recv())
        if job.exitcode:
            raise ConfigError(
                f"pack: a process ended with {job.exitcode}, for lack of memory perhaps; the same "
                "command resumes, maybe with fewer --workers"
            )


def _work(errors: Any, out: Path, table: str, shards: Sequence[int], parent: int) -> None:
    """One process; it sends what is wrong in one line."""
    try:
        pack_part(out, table, shards, parent)
    except (ConfigError, OSError) as error:
        errors.send(f"pack: {error}")


def _summary(out: Path, plan: Plan, count: int, seconds: float) -> None:
    from mtmm_jax.data.sources.sharded.source import packed

    speed = f" in {seconds:.1f} s" if count else ""
    if left := plan.missing(out):
        print(f"packed {count:,} shards{speed}; {len(left):,} of {plan.shards:,} are still to do")
        return
    source = packed(out)
    sizes = ", ".join(f"{len(source.rows[split]):,} {split}" for split in SPLITS)
    bad = plan.rows - sum(map(len, source.rows.values()))
    left_out = f"; {bad:,} rows cannot be used" if bad else ""
    print(f"packed {plan.rows:,} rows{speed}: {sizes}{left_out}")
    print(f'next: config.data = {{"kind": "packed", "path": "{out}"}}, or have one written by')
    print(f"python -m mtmm_jax.data.inspect.check {out} --write packed.py")


if __name__ == "__main__":
    sys.exit(main())
