"""The time of decoding a user's files, as a multiple of that of Pillow, soundfile and soxr alone.

    python -m mtmm_jax.benchmarks.speed.decoding --json decoding.json

Files are made up by a seed. In one process and in turns, on one thread: our decoders against
Pillow's own decode and resize and against soundfile and soxr; a record of a shard against one of
array_record; and the first and a later epoch of a small manifest that is decoded once, by as many
threads as there are processors, against an epoch that decodes its files.

Rows: what, n (files or records of a call), rounds, ours_ms and peer_ms (medians of a call), times
(ours / peer, the median of the rounds), least, most (of the rounds).
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
from PIL import Image

from mtmm_jax.benchmarks.speed.timing import machine, write_json
from mtmm_jax.data.sources.manifest import manifest
from mtmm_jax.data.sources.manifest.shards import Record, open_shard, write_shard
from mtmm_jax.readers import LIMITS
from mtmm_jax.readers.pictures import decode_image
from mtmm_jax.readers.sounds import decode_audio

SIZE, RATE = 64, 16_000
PICTURES = {
    "small JPEG": ((200, 150), 3, "JPEG"),
    "large JPEG": ((2000, 1500), 3, "JPEG"),
    "small RGBA PNG": ((200, 150), 4, "PNG"),
    "large RGBA PNG": ((1000, 750), 4, "PNG"),
}
SOUNDS = {
    "WAV of 16 kHz": (16_000, "WAV"),
    "WAV of 44.1 kHz": (44_100, "WAV"),
    "FLAC of 44.1 kHz": (44_100, "FLAC"),
}


def picture(rng: np.random.Generator, size: tuple[int, int], channels: int, format: str) -> bytes:
    """Smooth blobs with a little noise, which files of photographs are like to decode."""
    coarse = rng.integers(0, 256, (size[1] // 25 + 2, size[0] // 25 + 2, channels), np.uint8)
    pixels = np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC))
    pixels = np.clip(pixels + rng.normal(0, 4, pixels.shape), 0, 255).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format)
    return out.getvalue()


def sound(rng: np.random.Generator, rate: int, format: str, seconds: float = 5.0) -> bytes:
    at = np.arange(int(rate * seconds)) / rate
    wave = 0.3 * np.sin(2 * np.pi * rng.uniform(100, 1000) * at) + rng.normal(0, 0.02, len(at))
    out = io.BytesIO()
    soundfile.write(out, wave, rate, format=format)
    return out.getvalue()


def by_pillow(data: bytes) -> np.ndarray:
    """Shrinks while it decodes, as `thumbnail` does; not upright, not on white, not checked."""
    with Image.open(io.BytesIO(data)) as image:
        image.thumbnail((SIZE, SIZE))
        return np.asarray(image)


def by_soundfile(data: bytes) -> np.ndarray:
    wave, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    return soxr.resample(wave.mean(axis=1), rate, RATE)


def compare(
    what: str, n: int, rounds: int, ours: Callable[[], Any], peer: Callable[[], Any]
) -> dict[str, Any]:
    """A row: both in turns, ratios within a round."""
    calls, times = (ours, peer), []
    for call in calls:
        call()
    for _ in range(rounds):
        pair = []
        for call in calls:
            start = time.perf_counter()
            call()
            pair.append(1e3 * (time.perf_counter() - start))
        times.append(pair)
    return row(what, n, times)


def row(what: str, n: int, times: Sequence[Sequence[float]]) -> dict[str, Any]:
    ratios = [ours / peer for ours, peer in times]
    mine, others = (statistics.median(column) for column in zip(*times, strict=True))
    return {
        "what": what,
        "n": n,
        "rounds": len(times),
        "ours_ms": round(mine, 3),
        "peer_ms": round(others, 3),
        "times": round(statistics.median(ratios), 2),
        "least": round(min(ratios), 2),
        "most": round(max(ratios), 2),
    }


def each(decode: Callable[[bytes], Any], files: Sequence[bytes]) -> Callable[[], None]:
    def call() -> None:
        for data in files:
            decode(data)

    return call


def decoders(n: int, rounds: int) -> Iterator[dict[str, Any]]:
    rng = np.random.default_rng(0)
    for name, form in PICTURES.items():
        files = [picture(rng, *form) for _ in range(n)]
        ours = each(lambda data: decode_image(data, SIZE, LIMITS), files)
        yield compare(f"{name} / Pillow", n, rounds, ours, each(by_pillow, files))
    for name, form in SOUNDS.items():
        files = [sound(rng, *form) for _ in range(n)]
        ours = each(lambda data: decode_audio(data, RATE, LIMITS), files)
        yield compare(f"{name} / soundfile + soxr", n, rounds, ours, each(by_soundfile, files))


def records(count: int, rounds: int, folder: Path) -> dict[str, Any]:
    """Decoded pictures in random order, from a shard and from array_record."""
    from array_record.python import array_record_data_source, array_record_module

    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (count, SIZE, SIZE, 3), np.uint8)
    names = [f"{i}.png" for i in range(count)]
    shard = open_shard(
        write_shard(folder, {name: Record((0, 0)) for name in names}, list(pixels)).index
    )
    path = folder / "pictures.array_record"
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1,uncompressed")
    for one in pixels:
        writer.write(one.tobytes())
    writer.close()
    source = array_record_data_source.ArrayRecordDataSource([str(path)])
    order, out = rng.permutation(count).tolist(), np.empty_like(pixels[0])

    def mapped() -> None:
        for i in order:
            out[:] = shard.array(shard.records[names[i]])

    def record() -> None:
        for i in order:
            out[:] = np.frombuffer(source[i], np.uint8).reshape(out.shape)

    return compare("record of a shard / of array_record", count, rounds, mapped, record)


def epochs(n: int, rounds: int, folder: Path) -> Iterator[dict[str, Any]]:
    """An epoch of pictures and sounds, against one that decodes all files."""
    rng = np.random.default_rng(0)
    lines = []
    for i in range(n):
        (folder / f"{i}.png").write_bytes(picture(rng, (600, 450), 4, "PNG"))
        lines.append({"image": f"{i}.png", "split": "train"})
        if i % 4 == 0:
            (folder / f"{i}.flac").write_bytes(sound(rng, 44_100, "FLAC"))
            lines[-1]["audio"] = f"{i}.flac"
    (folder / "m.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    kinds = {"image": {"kind": "image", "size": SIZE}, "audio": {"kind": "audio"}}
    fresh = (str(folder / f"decoded {i}") for i in itertools.count())

    def epoch(where: str | bool) -> float:
        """Milliseconds, the source's start included."""
        start = time.perf_counter()
        source = manifest(folder / "m.jsonl", modalities=kinds, targets={}, decoded=where)
        batches = dataclasses.replace(source, workers=0).train(8)
        for _ in range(n // 8):
            next(batches)
        return 1e3 * (time.perf_counter() - start)

    epoch(False)
    found = []
    for _ in range(rounds):
        where = next(fresh)
        found.append((epoch(where), epoch(where), epoch(False)))
    yield row("first epoch / epoch that decodes", n, [(cold, lazy) for cold, _, lazy in found])
    yield row("later epoch / epoch that decodes", n, [(warm, lazy) for _, warm, lazy in found])


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--files", type=int, default=8, help="of each sort (default: %(default)s)")
    add("--examples", type=int, default=96, help="of the manifest (default: %(default)s)")
    add("--records", type=int, default=512, help="of a shard (default: %(default)s)")
    add("--rounds", type=int, default=7, help="default: %(default)s")
    add("--json", help="write the rows here")
    options = parser.parse_args(argv)
    rows = []
    with tempfile.TemporaryDirectory() as shards, tempfile.TemporaryDirectory() as files:
        measured = itertools.chain(
            decoders(options.files, options.rounds),
            [records(options.records, options.rounds, Path(shards))],
            epochs(options.examples, options.rounds, Path(files)),
        )
        print(f"{'':42}{'n':>6}{'ours ms':>10}{'peer ms':>10}{'times':>7}")
        for one in measured:
            spread = f"{one['least']:.2f}..{one['most']:.2f}"
            print(
                f"{one['what']:42}{one['n']:>6}{one['ours_ms']:>10.2f}{one['peer_ms']:>10.2f}"
                f"{one['times']:>7.2f}  {spread}",
                flush=True,
            )
            rows.append(one)
    if options.json:
        write_json(options.json, rows, machine())
    return rows


if __name__ == "__main__":
    main()
