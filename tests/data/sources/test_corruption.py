"""Whatever is done to files and rows, each ends as a batch by the spec or as a bad row with a name.

The generator below is seeded: case n is always the same.
"""

import json
import os
import random
import re
import resource
import signal
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from mtmm_jax.data.sources.manifest import manifest
from mtmm_jax.registry import ConfigError

MODALITIES = {
    "image": {"kind": "image", "size": 16},
    "speech": {"kind": "audio", "rate": 8000, "seconds": 0.25},
    "clip": {"kind": "video", "frames": 3, "size": 8},
    "caption": {"kind": "text", "length": 8, "vocabulary": 100},
    "note": {"kind": "text", "from": "file", "length": 8, "vocabulary": 100},
    "facts": {"kind": "table", "columns": ["age", "colour"]},
}
TARGETS = {
    "category": {"kind": "class", "classes": ["cat", "dog"]},
    "score": {"kind": "number"},
    "tags": {"kind": "labels", "classes": ["a", "b"]},
    "said": {"kind": "tokens", "length": 40},
    "boxes": {"kind": "boxes", "units": "pixels", "length": 4, "classes": ["cat", "dog"]},
}
FILES = {
    "image": ("a.png", "a.jpg", "a.webp", "a.gif", "a.bmp", "alpha.png", "grey.png", "p.jpg"),
    "speech": ("a.wav", "a.flac", "a.ogg", "a.mp3", "float.wav", "stereo.wav"),
    "clip": ("moving.gif", "moving.webp"),
    "note": ("a.txt",),
}
ROW = {
    "image": "a.png",
    "speech": "a.wav",
    "clip": "moving.gif",
    "caption": "a cat by a dog",
    "note": "a.txt",
    "age": 3,
    "colour": "red",
    "category": "cat",
    "score": 0.5,
    "tags": ["a"],
    "said": "hello",
    "boxes": [{"box": [1, 2, 9, 8], "class": "dog"}],
    "split": "train",
}
PER_MANIFEST = 40


def write_files(folder: Path) -> None:
    """A valid file of every format."""
    noise = np.random.default_rng(0)
    picture = Image.fromarray(noise.integers(0, 255, (20, 24, 3), np.uint8))
    for name in ("a.png", "a.jpg", "a.webp", "a.gif", "a.bmp"):
        picture.save(folder / name)
    picture.save(folder / "p.jpg", progressive=True)
    alpha = picture.convert("RGBA")
    alpha.putalpha(picture.convert("L"))
    alpha.save(folder / "alpha.png")
    picture.convert("L").convert("I;16").save(folder / "grey.png")
    frames = [picture.rotate(90 * i) for i in range(5)]
    for name in ("moving.gif", "moving.webp"):
        frames[0].save(folder / name, save_all=True, append_images=frames[1:], duration=40)
    wave = (noise.standard_normal(3000) * 0.1).clip(-1, 1).astype(np.float32)
    for name in ("a.wav", "a.flac", "a.ogg", "a.mp3"):
        soundfile.write(folder / name, wave, 8000)
    soundfile.write(folder / "float.wav", wave, 8000, subtype="FLOAT")
    soundfile.write(folder / "stereo.wav", np.stack([wave, wave], 1), 11025)
    (folder / "a.txt").write_text("a note: naïve café\n", encoding="utf-8")


def flip_bits(data: bytes, chance: random.Random) -> bytes:
    out = bytearray(data)
    reach = len(out) if chance.random() < 0.5 else min(64, len(out))  # headers matter most
    for _ in range(chance.choice([1, 1, 2, 5, 30])):
        out[chance.randrange(reach)] ^= 1 << chance.randrange(8)
    return bytes(out)


def cut(data: bytes, chance: random.Random) -> bytes:
    return data[: chance.randrange(len(data))]


def splice(data: bytes, chance: random.Random) -> bytes:
    at, to = sorted(chance.randrange(len(data)) for _ in range(2))
    return chance.choice([data[:at] + data[to:], data[:to] + data[at:], data[at:] + data[:at]])


def junk(data: bytes, chance: random.Random) -> bytes:
    return data[: chance.choice([0, 4, 12, 16])] + chance.randbytes(chance.randrange(200))


def large_numbers(data: bytes, chance: random.Random) -> bytes:
    """Sizes, rates, counts and offsets in headers become huge, zero or negative."""
    out = bytearray(data)
    for _ in range(chance.choice([1, 1, 2])):
        width = chance.choice([2, 4])
        at = chance.randrange(min(len(out), 80))
        value = chance.choice([b"\xff" * 4, b"\x7f\xff\xff\xff", b"\0" * 4, b"\xff\xff\xff\x7f"])
        out[at : at + width] = value[:width]
    return bytes(out)


def bomb(data: bytes, chance: random.Random) -> bytes:
    """A picture whose header declares far more than there is; a sound of a day."""
    width = chance.choice([60000, 2**31 - 1, 2**16 - 1, 12000])
    kind = chance.randrange(4)
    if kind == 0:
        head = struct.pack(">IIBBBBB", width, width, 8, 6, 0, 0, 0)
        body = zlib.compress(bytes(10**6))
        parts = ((b"IHDR", head), (b"IDAT", body), (b"IEND", b""))
        chunks = [
            struct.pack(">I", len(part)) + name + part + struct.pack(">I", zlib.crc32(name + part))
            for name, part in parts
        ]
        return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)
    if kind == 1:
        return b"BM" + struct.pack(
            "<IHHIIiiHHIIiiII", 99, 0, 0, 54, 40, width, -width, 1, 24, 0, 0, 0, 0, 0, 0
        )
    if kind == 2:
        side = (16383).to_bytes(3, "little")
        return b"RIFF" + struct.pack("<I", 30) + b"WEBPVP8X" + struct.pack("<II", 10, 2) + side * 2
    rate = chance.choice([1, 8000, 2**31 - 1])
    form = struct.pack("<HHIIHH", 1, chance.choice([1, 2, 60000]), rate, rate, 2, 16)
    body = struct.pack("<I", 2**32 - 1) + bytes(8)
    return b"RIFF" + b"\xff" * 4 + b"WAVEfmt " + struct.pack("<I", 16) + form + b"data" + body


def long_clip(data: bytes, chance: random.Random) -> bytes:
    """An animation of very many, very small frames."""
    frame = b"\x2c" + bytes(4) + b"\1\0\1\0\0" + b"\2\2\x44\1\0"
    head = b"GIF89a\1\0\1\0\x80\0\0" + bytes(6)
    return head + frame * chance.choice([3, 1000, 40000]) + b"\x3b"


MUTATIONS = (flip_bits, flip_bits, cut, splice, junk, large_numbers, large_numbers, bomb, long_clip)
PATHS = (
    "../secret.png",
    "a/../../secret.png",
    "/etc/passwd",
    "out.png",
    "outside/secret.png",
    "C:\\a.png",
    "..\\a.png",
    "a.png\0",
    "pipe",
    ".",
    "",
    "missing.png",
    "x" * 5000,
    "x" * 300,
    "a" + "/a" * 400,
)
VALUES = (
    None,
    True,
    -1,
    10**400,
    1e308,
    float("nan"),
    float("-inf"),
    "nan",
    "1e999",
    "",
    " ",
    "ж\u202e\0",
    "x" * 300_000,
    [],
    {},
    [[[[["deep"]]]]],
    {"a": {"b": [1]}},
    [None],
    [{"box": [1, 2, 3], "class": "cat"}],
    [{"box": [1, 2, "x", 4], "class": "cat"}],
    [{"box": [1, 2, float("nan"), 4], "class": "cat"}],
    [{"box": [1, 2, 9999, 9999], "class": "cat"}],
    [{"box": [5, 5, 1, 1], "class": "dog"}],
    [{"box": [0, 0, 1, 1], "class": ["dog"]}],
    [{"box": [0, 0, 1, 1], "class": "dog"}] * 50,
    [{}],
    ["a", "a", 3],
)


def mutated_row(folder: Path, number: int, chance: random.Random) -> bytes:
    """A line of a manifest with one thing wrong with it, or with a file of its own."""
    row = {**ROW, "number": number}
    kind = chance.random()
    if kind < 0.65:
        column = chance.choice(list(FILES))
        data = (
            folder / chance.choice(FILES[chance.choice([column, column, "image"])])
        ).read_bytes()
        name = f"bad_{number % PER_MANIFEST}"
        (folder / name).write_bytes(chance.choice(MUTATIONS)(data, chance))
        row[column] = name
    elif kind < 0.75:
        row[chance.choice(list(FILES))] = chance.choice(PATHS)
    elif kind < 0.9:
        row[chance.choice([key for key in ROW if key != "split"])] = chance.choice(VALUES)
    elif kind < 0.93:
        for column in chance.sample([key for key in ROW if key != "split"], 5):
            del row[column]
    line = json.dumps(row).encode()
    if kind < 0.93:
        return line
    return chance.choice(
        [
            line[: chance.randrange(2, len(line))],
            flip_bits(line, chance),
            line.replace(b"a cat", b"\xff\xfe\xc3("),
            line.replace(b"a cat", b"\\ud800"),
            b"[" * 100_000,
            b'{"a":' * 50_000,
            line.decode().encode("utf-16"),
            b'{"split": "train", "score": ' + b"9" * 5000 + b"}",
            b"7",
            b"x" * 2_000_000,
            b"\0" * 50,
        ]
    ).replace(b"\n", b" ")


def look_at(folder: Path, first: int, count: int) -> tuple[int, int]:
    """Cases `first` and on in one manifest: how many loaded, how many are named as bad."""
    lines = [json.dumps(ROW).encode()] + [
        mutated_row(folder, number, random.Random(number)) for number in range(first, first + count)
    ]
    (folder / "m.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    try:
        source = manifest(folder / "m.jsonl", modalities=MODALITIES, targets=TARGETS)
    except ConfigError as error:  # an unknown class or split costs the whole manifest
        assert re.search(r"m.jsonl line \d+, column '\w+': .*unknown", str(error))  # noqa: PT017
        return (0, 1) if count == 1 else halves(folder, first, count)
    bad = source.compose.bad
    fine = 0
    assert source.rows["train"][0] == 0
    for row in source.rows["train"].tolist():
        batch = source.compose(np.array([row, 0]), None)
        source.spec.check(batch)
        weight = batch.get("weight", np.ones(2))
        assert weight[1] == 1
        assert weight[0] == (row not in bad)
        fine += int(weight[0])
        for entry in (*batch["inputs"].values(), *batch["targets"].values()):
            x = entry.get("x", entry.get("y"))
            for leaf in x.values() if isinstance(x, dict) else [x]:
                assert np.isfinite(leaf).all()
        for name in ("image", "clip"):
            assert np.abs(batch["inputs"][name]["x"]).max() <= 1 + 1e-5
    for problem in bad.problems:
        assert problem.line > 1
        assert problem.reason
        assert "\n" not in problem.reason
    assert fine + len(bad) == count + 1
    return fine - 1, len(bad)


def halves(folder: Path, first: int, count: int) -> tuple[int, int]:
    parts = (
        look_at(folder, first, count // 2),
        look_at(folder, first + count // 2, count - count // 2),
    )
    return parts[0][0] + parts[1][0], parts[0][1] + parts[1][1]


def prepare(folder: Path) -> Path:
    inside = folder / "data"
    inside.mkdir()
    write_files(inside)
    Image.new("RGB", (4, 4)).save(folder / "secret.png")
    (inside / "out.png").symlink_to(folder / "secret.png")
    (inside / "outside").symlink_to(folder)
    os.mkfifo(inside / "pipe")
    return inside


def run(folder: Path, cases: int) -> tuple[int, int]:
    fine = bad = 0
    for first in range(0, cases, PER_MANIFEST):
        found = look_at(folder, first, min(PER_MANIFEST, cases - first))
        fine, bad = fine + found[0], bad + found[1]
    return fine, bad


@pytest.fixture(autouse=True)
def quiet(caplog):
    caplog.set_level("CRITICAL", logger="mtmm_jax.data.sources.manifest")


def test_hundreds_of_broken_rows_are_named_or_load(tmp_path):
    fine, bad = run(prepare(tmp_path), 600)
    assert fine + bad == 600
    assert fine > 60
    assert bad > 300


def test_the_files_that_are_broken_are_fine_unbroken(tmp_path):
    folder = prepare(tmp_path)
    rows = [{**ROW, column: name} for column, names in FILES.items() for name in names]
    (folder / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = manifest(
        folder / "m.jsonl", modalities=MODALITIES, targets=TARGETS, on_bad="stop", workers=0
    )
    batch = source.compose(source.rows["train"], None)
    assert "weight" not in batch
    assert all(entry["present"].all() for entry in batch["inputs"].values())


def _child(folder: str, cases: str) -> None:
    """Prints how many loaded and were bad, and by how many MiB the peak of memory grew."""
    import logging

    logging.getLogger("mtmm_jax.data.sources.manifest").setLevel(logging.CRITICAL)
    inside = prepare(Path(folder))
    run(inside, PER_MANIFEST)  # libraries are loaded
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    fine = bad = 0
    for first in range(0, int(cases), PER_MANIFEST):
        signal.alarm(60)  # a hang ends the process
        found = look_at(inside, first, min(PER_MANIFEST, int(cases) - first))
        fine, bad = fine + found[0], bad + found[1]
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(fine, bad, (after - before) // 1024)


@pytest.mark.slow
def test_thousands_of_broken_rows_in_bounded_memory(tmp_path):
    code = (
        f"from tests.data.sources.test_corruption import _child; _child({str(tmp_path)!r}, '4000')"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    fine, bad, grown = map(int, said.stdout.split())
    assert fine + bad == 4_000
    assert min(fine, bad) > 400
    assert grown < 512  # MiB: a picture at the limit takes 128, and twice that as it is converted
