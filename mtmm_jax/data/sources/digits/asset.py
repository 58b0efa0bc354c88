"""The packed digits: a compressed CSV for each view, number for number as published, and labels.

`pack.py` writes it, the TFDS builder reads it.
"""

from __future__ import annotations

import csv
import lzma
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent / "assets"
# Columns of each view: Fourier coefficients of the shape, profile correlations, Karhunen-Loeve
# coefficients, means of 2 x 3 pixels, Zernike moments, morphology.
VIEWS = {"fou": 76, "fac": 216, "kar": 64, "pix": 240, "zer": 47, "mor": 6}
DIGITS = tuple("0123456789")


def write(
    folder: Path, views: Mapping[str, Sequence[str]], labels: Sequence[tuple[str, str]]
) -> None:
    """`views` hold a line of comma-separated numbers for each example, `labels` digit and split."""
    for name, lines in views.items():
        text = "".join(line + "\n" for line in lines).encode()
        packed = lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)
        (folder / f"{name}.csv.xz").write_bytes(packed)
    rows = "".join(f"{digit},{split}\n" for digit, split in labels)
    (folder / "labels.csv").write_text("digit,split\n" + rows, encoding="utf-8")


def read_view(name: str, folder: Path = FOLDER) -> np.ndarray:
    """`[N, columns]` float32."""
    text = lzma.decompress((folder / f"{name}.csv.xz").read_bytes()).decode()
    return np.loadtxt(text.splitlines(), np.float32, delimiter=",")


def read_labels(folder: Path = FOLDER) -> tuple[list[str], list[str]]:
    """The digit and the split of each example."""
    with open(folder / "labels.csv", encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    return [row["digit"] for row in rows], [row["split"] for row in rows]
