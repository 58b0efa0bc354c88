"""An odd folder of data as a stranger has it: files of many kinds, gaps, rare classes."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from PIL import Image

COLOURS = {"red": (200, 30, 30), "green": (30, 180, 40), "blue": (40, 60, 210)}
SHAPES = ("circle", "square", "ring", "star", "cross")
RARE = {"comet": 2, "nebula": 1}  # classes in the tail, and how many rows each has
EMPTY = 10  # per cent of the cells of `weight`


def rows_of(count: int = 120, seed: int = 0) -> list[dict[str, Any]]:
    """The rows, which name the files that `draw` writes."""
    noise = np.random.default_rng(seed)
    rare = [name for name, rows in RARE.items() for _ in range(rows)]
    rows = []
    for i in range(count):
        colour = list(COLOURS)[i % 3]
        shape = (
            rare[i]
            if i < len(rare)
            else SHAPES[int(noise.choice(5, p=(0.4, 0.3, 0.15, 0.1, 0.05)))]
        )
        ending = "jpg" if i % 4 == 3 else "png"
        caption = f'a "{colour}" {shape}, seen at place {int(noise.integers(0, 40))}, on paper'
        rows.append(
            {
                "id": f"n{i:03d}",
                "photo": f"pictures/{i}.{ending}",
                "sound": f"sounds/{i}.wav" if i % 3 == 0 else None,
                "caption": None if i % 17 == 5 else caption,
                "shape": shape,
                "colour": colour,
                "stars": int(noise.integers(1, 6)),
                "weight": None if i % 10 == 4 else round(float(noise.normal(50, 9)), 2),
                "price": int(noise.integers(3, 4000)),
                "day": f"2024-{1 + i % 12:02d}-{1 + i % 28:02d}",
                "maker_id": f"m{i % 30}",
            }
        )
    return rows


def draw(root: Path, count: int = 120, seed: int = 0, corrupt: bool = True) -> list[dict[str, Any]]:
    """Writes the files, and returns the rows."""
    rows, noise = rows_of(count, seed), np.random.default_rng(seed + 1)
    (root / "pictures").mkdir(parents=True, exist_ok=True)
    (root / "sounds").mkdir(exist_ok=True)
    for i, row in enumerate(rows):
        (root / row["photo"]).write_bytes(picture(row, noise))
        if row["sound"]:
            tone = np.sin(np.arange(4000) * (0.05 + 0.003 * i)) * 0.3
            soundfile.write(root / row["sound"], tone, 8000)
    if corrupt:
        (root / rows[11]["photo"]).write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    return rows


def picture(row: dict[str, Any], noise: np.random.Generator) -> bytes:
    """A coloured picture of any size: RGBA as PNG, RGB as JPEG."""
    size = tuple(int(n) for n in noise.integers(9, 70, 2))
    pixels = noise.integers(0, 60, (*size, 3)) + np.array(COLOURS[row["colour"]]) * 3 // 4
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    out = io.BytesIO()
    if row["photo"].endswith(".jpg"):
        image.save(out, "JPEG")
    else:
        image.putalpha(int(noise.integers(100, 256)))
        image.save(out, "PNG")
    return out.getvalue()


def write_table(root: Path, rows: list[dict[str, Any]], name: str) -> Path:
    """The rows by the ending of the name: CSV has semicolons and a byte order mark."""
    path = root / name
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        encoding, delimiter = ("utf-8-sig", ";") if path.suffix == ".csv" else ("utf-8", "\t")
        with path.open("w", encoding=encoding, newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
            writer.writeheader()
            writer.writerows(rows)
    return path


def write_classes(root: Path, rows: list[dict[str, Any]]) -> Path:
    """Folders `class/file`."""
    noise = np.random.default_rng(3)
    for i, row in enumerate(rows):
        folder = root / row["shape"]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{i}{Path(row['photo']).suffix}").write_bytes(picture(row, noise))
    return root


def write_hub(root: Path, rows: list[dict[str, Any]]) -> Path:
    """A folder with `metadata.csv` whose column `file_name` names the pictures."""
    write_classes(root, rows)
    with (root / "metadata.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["file_name", "caption", "colour"])
        writer.writeheader()
        for i, row in enumerate(rows):
            name = f"{row['shape']}/{i}{Path(row['photo']).suffix}"
            writer.writerow({"file_name": name, "caption": row["caption"], "colour": row["colour"]})
    return root
