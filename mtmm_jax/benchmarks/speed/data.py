"""Examples a second out of a folder of files, decoded and batched, next to a torch DataLoader.

    python -m mtmm_jax.benchmarks.speed.data --quick
    python -m mtmm_jax.benchmarks.speed.data --peers --json data.json

The same files on both sides: 32-pixel pictures as PNG and as JPEG, one-second 16 kHz wav files, and
both together; pictures are normalised, sounds brought to one length, everything stacked to
batches. Rows: files, examples, workers, peer, per_second, per_core_second (of processor time, all
threads and processes), times_peer (of per_core_second, the peer's best).
"""

from __future__ import annotations

import argparse
import csv
import io
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from PIL import Image

from mtmm_jax.benchmarks.speed.timing import machine, write_json
from mtmm_jax.data.sources.manifest import manifest

KINDS = ("png", "jpeg", "wav", "mixed")
WORKERS = (0, 1, 2)
BATCH, SIZE, RATE, SECONDS = 64, 32, 16_000, 1.0


def write_files(folder: Path, count: int) -> None:
    """Pictures with shapes and noise in them, and tones in noise: of the size of real ones."""
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, SIZE)] * 2, indexing="ij"))
    for kind in ("png", "jpeg", "wav"):
        (folder / kind).mkdir(parents=True)
    for i in range(count):
        centre, radius = rng.uniform(-0.5, 0.5, (2, 1, 1)), rng.uniform(0.2, 0.7)
        inside = (((grid - centre) ** 2).sum(0) < radius**2)[..., None]
        picture = np.where(inside, rng.uniform(0, 255, 3), rng.uniform(0, 255, 3))
        picture = np.clip(picture + rng.normal(0, 8, picture.shape), 0, 255).astype(np.uint8)
        Image.fromarray(picture).save(folder / "png" / f"{i}.png")
        Image.fromarray(picture).save(folder / "jpeg" / f"{i}.jpg", quality=90)
        at = np.arange(int(RATE * rng.uniform(0.6, 1.0))) / RATE
        tone = 0.4 * np.sin(2 * np.pi * rng.uniform(100, 1000) * at)
        soundfile.write(folder / "wav" / f"{i}.wav", tone + rng.normal(0, 0.02, len(at)), RATE)


def paths_of(kind: str, i: int) -> dict[str, str]:
    """modality -> file of one example."""
    picture = {"image": f"jpeg/{i}.jpg" if kind in ("jpeg", "mixed") else f"png/{i}.png"}
    sound = {"audio": f"wav/{i}.wav"}
    return {"wav": sound, "mixed": picture | sound}.get(kind, picture)


def ours(folder: Path, kind: str, count: int, workers: int) -> Iterator[Any]:
    """Endless batches of our manifest source."""
    import dataclasses

    table = io.StringIO()
    rows = [{"id": i, "split": "train", **paths_of(kind, i), "label": i % 2} for i in range(count)]
    writer = csv.DictWriter(table, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    path = folder / f"{kind}.csv"
    path.write_text(table.getvalue())
    all_of = {
        "image": {"kind": "image", "size": SIZE},
        "audio": {"kind": "audio", "rate": RATE, "seconds": SECONDS},
    }
    source = manifest(
        str(path),
        modalities={name: all_of[name] for name in paths_of(kind, 0)},
        targets={"label": {"kind": "class"}},
        decoded=False,  # what decoding costs in every epoch
    )
    return iter(dataclasses.replace(source, workers=workers).train(BATCH))


def peer(folder: Path, kind: str, count: int, workers: int) -> Iterator[Any]:
    """Endless batches of a torch DataLoader over a map-style data set."""
    import torch
    from torch.utils.data import DataLoader, Dataset

    class Files(Dataset):
        def __len__(self) -> int:
            return count

        def __getitem__(self, i: int) -> dict[str, Any]:
            found: dict[str, Any] = {"label": i % 2}
            for name, path in paths_of(kind, i).items():
                found[name] = load[name](folder / path)
            return found

    def picture(path: Path) -> Any:
        with Image.open(path) as image:
            pixels = torch.from_numpy(np.array(image.convert("RGB")))
        return pixels.permute(2, 0, 1).contiguous().to(torch.float32).div(127.5).sub(1.0)

    def sound(path: Path) -> Any:
        wave = torch.from_numpy(soundfile.read(path, dtype="float32")[0])
        length = int(RATE * SECONDS)
        return torch.nn.functional.pad(wave[:length], (0, max(0, length - len(wave))))

    load = {"image": picture, "audio": sound}
    torch.set_num_threads(1)
    loader = DataLoader(
        Files(),
        BATCH,
        shuffle=True,
        num_workers=workers,
        drop_last=True,
        persistent_workers=workers > 0,
        multiprocessing_context="fork" if workers else None,
    )
    while True:
        yield from loader


def _processor_seconds() -> float:
    """Of this process and its ended children."""
    own = resource.getrusage(resource.RUSAGE_SELF)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def rate(make: Callable[[], Iterator[Any]], batches: int) -> tuple[float, float]:
    """Examples a second and a processor second, by one pass in a process of its own.

    A child's processor time is only known when it has ended: so everything happens in one.
    """
    import multiprocessing

    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)

    def measure() -> None:
        iterator = make()
        for _ in range(3):
            next(iterator)
        start, used = time.perf_counter(), _processor_seconds()
        for _ in range(batches):
            next(iterator)
        wall = time.perf_counter() - start
        del iterator  # ends the workers, whose time counts from then on
        send.send((wall, _processor_seconds() - used))

    child = context.Process(target=measure)
    child.start()
    wall, processor = receive.recv()
    child.join()
    return BATCH * batches / wall, BATCH * batches / processor


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows, ours and the peer's in turns."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_files(folder, options.examples)
        batches = max(options.examples // BATCH, 4)
        for kind in options.files:
            calls = {(None, w): ours for w in options.workers}
            if options.peers:
                calls |= {("torch", w): peer for w in options.workers}
            found: dict[Any, list[tuple[float, float]]] = {key: [] for key in calls}
            for _ in range(options.repeats):
                for (who, workers), make in calls.items():
                    one = rate(
                        lambda m=make, k=kind, w=workers: m(folder, k, options.examples, w), batches
                    )
                    found[who, workers].append(one)
            new = [
                {
                    "files": kind,
                    "examples": options.examples,
                    "workers": workers,
                    "peer": who,
                    "per_second": round(statistics.median(r[0] for r in results)),
                    "per_core_second": round(statistics.median(r[1] for r in results)),
                }
                for (who, workers), results in found.items()
            ]
            best = max((row["per_core_second"] for row in new if row["peer"]), default=None)
            for row in new:
                row["times_peer"] = best and round(row["per_core_second"] / best, 2)
                print(_line(row), flush=True)
            rows += new
    return rows


def _line(row: dict[str, Any]) -> str:
    times = "" if row["times_peer"] is None else f"{row['times_peer']:.2f}"
    return (
        f"{row['files']:8}{row['peer'] or 'mtmm_jax':10}{row['workers']:>8}"
        f"{row['per_second']:>12,}{row['per_core_second']:>14,}{times:>8}"
    )


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--files", nargs="+", default=KINDS, choices=KINDS)
    add("--workers", type=int, nargs="+", default=WORKERS, help="default: %(default)s")
    add("--examples", type=int, default=4096, help="files of each kind (default: %(default)s)")
    add("--repeats", type=int, default=3, help="passes; the median counts (default: %(default)s)")
    add("--peers", action="store_true", help="next to torch's DataLoader")
    add("--quick", action="store_true", help="512 files, one pass")
    add("--json", help="write the rows here")
    options = parser.parse_args(argv)
    if options.quick:
        options.examples, options.repeats = 512, 1
    print(f"{'files':8}{'':10}{'workers':>8}{'/s':>12}{'/core s':>14}{'/peer':>8}")
    rows = measure(options)
    if options.json:
        write_json(options.json, rows, machine())
    return rows


if __name__ == "__main__":
    main()
