"""The packed films: one JSON object a line, compressed with xz.

`pack.py` writes it, the TFDS builder reads it.
"""

from __future__ import annotations

import dataclasses
import json
import lzma
from collections.abc import Iterable
from pathlib import Path

FOLDER = Path(__file__).parent / "assets"
RATINGS = ("G", "PG", "PG-13", "R", "NC-17")
# The same marks under older names: PG was M, then GP, until 1972; NC-17 was X until 1990.
OLD_RATINGS = {"M": "PG", "GP": "PG", "M/PG": "PG", "X": "NC-17"}
LEAST_GROSS = 1000.0  # dollars; the few below are sums in thousands or millions


@dataclasses.dataclass(frozen=True)
class Film:
    """One film. Unknown is `None` for numbers, empty for the rest.

    Attributes:
        imdb: its IMDb identifier.
        month: of its first release, where more than the year is known.
        runtime: minutes.
        director, writer, cast, production: names, joined by ", " as the source has them, the cast
            in the order of the alphabet.
        rating: of the American film board; "" for most films.
        tomatometer: percentage of favourable reviews.
        metacritic: mean of the critics' marks, 0 to 100.
        box_office: the largest gross on record, dollars of its day.
        reviews: how many the Tomatometer counts.
        oscars: won.
    """

    imdb: str
    title: str
    year: int
    month: int | None
    runtime: float | None
    director: str
    writer: str
    cast: str
    production: str
    languages: tuple[str, ...]
    countries: tuple[str, ...]
    genres: tuple[str, ...]
    rating: str
    tomatometer: float | None
    metacritic: float | None
    box_office: float | None
    reviews: int | None
    oscars: int
    split: str


def write(folder: Path, films: Iterable[Film]) -> None:
    rows = (
        json.dumps(dataclasses.asdict(film), ensure_ascii=False, separators=(",", ":")) + "\n"
        for film in films
    )
    packed = lzma.compress("".join(rows).encode(), preset=9 | lzma.PRESET_EXTREME)
    (folder / "films.jsonl.xz").write_bytes(packed)


def read(folder: Path = FOLDER) -> list[Film]:
    text = lzma.decompress((folder / "films.jsonl.xz").read_bytes()).decode()
    rows = map(json.loads, text.splitlines())
    several = ("languages", "countries", "genres")
    return [Film(**{**row, **{key: tuple(row[key]) for key in several}}) for row in rows]
