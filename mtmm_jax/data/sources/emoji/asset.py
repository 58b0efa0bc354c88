"""The packed emoji asset: two sprite sheets, one Ogg Opus stream per voice, one table of concepts.

`pack.py` writes it, the TFDS builder reads it. Few large files, because a sheet or a stream decodes
several times faster than thousands of small ones, and because a reader can open them.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from PIL import Image

FOLDER = Path(__file__).parent / "assets"
STYLES = ("noto", "twemoji")
UTTERANCES = ("first", "second")
SPLITS = ("train", "validation", "test")
TILE = 64
COLUMNS = 44
RATE = 16_000


@dataclasses.dataclass(frozen=True)
class Concept:
    """One emoji: what it is called, where it belongs, and where its two utterances lie.

    Attributes:
        code: its code points in hexadecimal, joined by dashes.
        voices: who speaks its name, one voice per utterance.
        spans: first and last-plus-one sample of each utterance in its voice's stream.
    """

    code: str
    name: str
    keywords: tuple[str, ...]
    category: str
    subcategory: str
    year: int
    split: str
    voices: tuple[str, str]
    spans: tuple[tuple[int, int], tuple[int, int]]


@dataclasses.dataclass(frozen=True)
class Table:
    """The concepts in the order of their tiles, and what they were made from."""

    concepts: tuple[Concept, ...]
    voices: tuple[str, ...]
    made_with: dict[str, str]

    def unique(self, field: str) -> tuple[str, ...]:
        """The values of a field in order of first appearance: the class names of a target."""
        return tuple(dict.fromkeys(getattr(concept, field) for concept in self.concepts))


def write_table(folder: Path, table: Table) -> None:
    """`concepts.json`, one concept a line, so that changes to it can be reviewed."""
    head = {"voices": table.voices, "made_with": table.made_with}
    rows = ",\n".join(
        json.dumps(dataclasses.asdict(concept), ensure_ascii=False, separators=(",", ":"))
        for concept in table.concepts
    )
    text = json.dumps(head)[:-1] + ', "concepts": [\n' + rows + "\n]}\n"
    (folder / "concepts.json").write_text(text, encoding="utf-8")


def read_table(folder: Path = FOLDER) -> Table:
    raw = json.loads((folder / "concepts.json").read_text(encoding="utf-8"))
    concepts = tuple(Concept(**_tuples(row)) for row in raw["concepts"])
    return Table(concepts, tuple(raw["voices"]), raw["made_with"])


def _tuples(row: dict[str, Any]) -> dict[str, Any]:
    spans = tuple(tuple(span) for span in row["spans"])
    return {
        **row,
        "keywords": tuple(row["keywords"]),
        "voices": tuple(row["voices"]),
        "spans": spans,
    }


def to_sheet(tiles: np.ndarray) -> Image.Image:
    """`[N, 64, 64, 4]` uint8 -> a sheet of `COLUMNS` tiles a row."""
    rows = -(-len(tiles) // COLUMNS)
    grid = np.zeros((rows * COLUMNS, TILE, TILE, 4), np.uint8)
    grid[: len(tiles)] = tiles
    grid = grid.reshape(rows, COLUMNS, TILE, TILE, 4).swapaxes(1, 2)
    return Image.fromarray(grid.reshape(rows * TILE, COLUMNS * TILE, 4), "RGBA")


def read_drawings(folder: Path, style: str, count: int) -> np.ndarray:
    """The first `count` tiles of a style's sheet: `[count, 64, 64, 4]` uint8, straight alpha."""
    with Image.open(folder / f"{style}.webp") as sheet:
        pixels = np.asarray(sheet.convert("RGBA"))
    rows = pixels.shape[0] // TILE
    tiles = pixels.reshape(rows, TILE, COLUMNS, TILE, 4).swapaxes(1, 2)
    return tiles.reshape(rows * COLUMNS, TILE, TILE, 4)[:count]


def read_speech(folder: Path, voice: str) -> np.ndarray:
    """A voice's whole stream, int16 at `RATE`; `Concept.spans` cut it into utterances."""
    wave, rate = soundfile.read(folder / f"{voice}.ogg", dtype="int16")
    if rate != RATE:
        raise ValueError(f"{folder / voice}.ogg has {rate} samples per second, not {RATE}")
    return wave


def files(folder: Path = FOLDER) -> list[Path]:
    return sorted(folder.iterdir())


def size(folder: Path = FOLDER) -> int:
    """Bytes of the whole asset."""
    return sum(path.stat().st_size for path in files(folder))
