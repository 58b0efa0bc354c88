"""A table of a million rows, all different: checked, packed with a kill between, and read.

    python -m mtmm_jax.benchmarks.speed.scale --rows 1000000 --json scale.json

Rows are made up by a seed: a PNG of 12 x 12 pixels as bytes in Parquet, a text, a class, a number.
Every command runs in a process of its own, whose largest memory is what the system says of it. The
packing is killed (SIGKILL) once a third of its shards is there, and started again. Rows a second
are those of batches of 128 in a random order, of a pack of `--few` rows and of this one in turns in
one process, so that their ratio does not depend on what else the machine does; each batch is read
twice, since a small pack soon lies in the disk's cache.

Fields: rows, few, processes; check, pack (first, killed at shards, again, kept) and read: seconds,
peak_mb; first_batch_s (from the start of the process) and its build_s; read, first
and again: rows_per_second of both, ratio (median, least and most of the rounds).
"""

from __future__ import annotations

import argparse
import io
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mtmm_jax.benchmarks.speed.timing import write_json
from mtmm_jax.data.sources.sharded.plan import read_header
from mtmm_jax.devices.machine import cores

SIDE, GROUP, BATCH, STEPS, ROUNDS = 12, 10_000, 128, 60, 7
WORDS = [
    "red",
    "green",
    "blue",
    "small",
    "large",
    "round",
    "old",
    "new",
    "fast",
    "slow",
    "cat",
    "dog",
    "tree",
    "house",
    "boat",
]
CONFIG = """
def get_config():
    return {"data": {"kind": "manifest", "path": "table.parquet",
        "modalities": {"picture": {"kind": "image", "size": 12},
                       "text": {"kind": "text", "length": 8}},
        "targets": {"kind": "class", "price": "number"},
        "split": {"train": 0.9, "validation": 0.05, "test": 0.05}}}
"""


def write_table(folder: Path, rows: int) -> Path:
    """`table.parquet` and `config.py`."""
    import pyarrow
    import pyarrow.parquet

    rng, writer = np.random.default_rng(0), None
    for start in range(0, rows, GROUP):
        count = min(GROUP, rows - start)
        pixels = rng.integers(0, 256, (count, SIDE, SIDE, 3), np.uint8)
        words = rng.integers(0, len(WORDS), (count, 5))
        price = rng.normal(50, 9, count)
        group = pyarrow.table(
            {
                "picture": [_png(one) for one in pixels],
                "text": [
                    f"{' '.join(WORDS[i] for i in row)} {start + n}" for n, row in enumerate(words)
                ],
                "kind": [WORDS[row[0]] for row in words],
                "price": price.tolist(),
            }
        )
        writer = writer or pyarrow.parquet.ParquetWriter(folder / "table.parquet", group.schema)
        writer.write_table(group)
    writer.close()
    (folder / "config.py").write_text(CONFIG)
    return folder / "table.parquet"


def _png(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG", compress_level=1)
    return out.getvalue()


def run(*command: str) -> tuple[dict[str, float], str]:
    """A command of Python's in its own process: seconds, its largest memory, what it printed."""
    start = time.monotonic()
    with tempfile.TemporaryFile("w+") as out:
        child = subprocess.Popen([sys.executable, *command], stdout=out)
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        printed = out.read()
    if child.returncode not in (0, 1):
        raise RuntimeError(f"{' '.join(command)} ended with {child.returncode}")
    seconds = time.monotonic() - start
    return {"seconds": round(seconds, 1), "peak_mb": round(used.ru_maxrss / 1024)}, printed


def check(table: Path) -> dict[str, float]:
    report = table.with_name("report.json")
    config = str(table.with_name("config.py"))
    spent, _ = run(
        "-m", "mtmm_jax.data.inspect.check", str(table), "--config", config, "--json", str(report)
    )
    found = json.loads(report.read_text())
    return {**spent, "rows": found["rows"], "problems": len(found["problems"])}


def packing(table: Path, out: Path, workers: int) -> list[str]:
    config = str(table.with_name("config.py"))
    options = ["--config", config, "--out", str(out), "--workers", str(workers)]
    return ["-m", "mtmm_jax.data.pack", str(table), *options]


def pack_killed(table: Path, out: Path, workers: int) -> dict[str, Any]:
    """Packs, kills it and packs again."""
    start = time.monotonic()
    child = subprocess.Popen([sys.executable, *packing(table, out, workers)])
    while child.poll() is None and len(list(out.glob("rows-*.json"))) < _third(out):
        time.sleep(0.2)
    child.send_signal(signal.SIGKILL)
    child.wait()
    first = round(time.monotonic() - start, 1)
    time.sleep(5)  # its processes end behind the shard that they are at
    kept = {path.name: path.stat().st_mtime_ns for path in out.glob("rows-*.json")}
    again, _ = run(*packing(table, out, workers))
    same = sum((out / name).stat().st_mtime_ns == at for name, at in kept.items())
    return {
        "first": first,
        "killed_at_shards": len(kept),
        "again": again,
        "kept": same,
        "shards": len(list(out.glob("rows-*.json"))),
        "gb": round(sum(file.stat().st_size for file in out.iterdir()) / 1e9, 2),
    }


def _third(out: Path) -> float:
    if not (out / "pack.json").exists():
        return float("inf")
    header = read_header(out)
    return header["rows"] / header["shard_rows"] / 3


READ = """
import sys, time
start = time.monotonic()
from mtmm_jax.data import build
source = build({"kind": "packed", "path": sys.argv[1]})
built = time.monotonic()
next(source.train(128))
print(built - start, time.monotonic() - start)
"""


def first_batch(out: Path) -> dict[str, float]:
    spent, printed = run("-c", READ, str(out))
    build, first = map(float, printed.split())
    return {**spent, "build_s": round(build, 2), "first_batch_s": round(first, 2)}


def read(few: Path, many: Path) -> dict[str, Any]:
    """Rows a second of both packs, in turns."""
    from mtmm_jax.data import build

    made = [iter(build({"kind": "packed", "path": str(p), "workers": 0}).train(BATCH))
            for p in (few, many)]  # fmt: skip
    speeds: dict[str, list[list[float]]] = {"first": [], "again": []}
    for _ in range(ROUNDS):
        states = [batches.get_state() for batches in made]
        for pairs in speeds.values():  # the same rows twice: from the disk, and from its cache
            pairs.append([])
            for batches, state in zip(made, states, strict=True):
                batches.set_state(state)
                next(batches)  # which draws the order of the epoch
                start = time.perf_counter()
                for _ in range(STEPS):
                    next(batches)
                pairs[-1].append(BATCH * STEPS / (time.perf_counter() - start))
    return {name: _compared(pairs) for name, pairs in speeds.items()}


def _compared(speeds: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Medians, and the ratio within a round."""
    ratios = [many / few for few, many in speeds]
    medians = [round(statistics.median(column)) for column in zip(*speeds, strict=True)]
    return {
        "rows_per_second": {"few": medians[0], "many": medians[1]},
        "ratio": round(statistics.median(ratios), 3),
        "least": round(min(ratios), 3),
        "most": round(max(ratios), 3),
    }


def main(argv: Sequence[str] | None = None) -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--rows", type=int, default=1_000_000)
    p.add_argument("--few", type=int, default=10_000)
    p.add_argument("--workers", type=int, default=len(cores()))
    p.add_argument("--json", metavar="FILE")
    arguments = p.parse_args(argv)
    found = {"rows": arguments.rows, "few": arguments.few, "processes": arguments.workers}
    with tempfile.TemporaryDirectory() as folder:
        for name, value in stages(Path(folder), arguments):
            found[name] = value
            print(json.dumps({name: value}), flush=True)
            if arguments.json:  # what is there counts, whenever it is stopped
                write_json(arguments.json, [found])


def stages(root: Path, arguments: argparse.Namespace) -> Iterator[tuple[str, Any]]:
    """Each part of the measurement and what it found."""
    tables = []
    for name, rows in (("few", arguments.few), ("many", arguments.rows)):
        (root / name).mkdir()
        tables.append(write_table(root / name, rows))
    few, many = (table.parent / "shards" for table in tables)
    yield "table_mb", round(tables[1].stat().st_size / 1e6)
    yield "pack", pack_killed(tables[1], many, arguments.workers)
    run(*packing(tables[0], few, arguments.workers))
    yield "first_batch", {"few": first_batch(few), "many": first_batch(many)}
    yield "read", read(few, many)
    yield "check", {"few": check(tables[0]), "many": check(tables[1])}


if __name__ == "__main__":
    main()
