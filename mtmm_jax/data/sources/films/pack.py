"""Makes the packed films, once, from a wheel that carries a database of them.

    pip download --no-deps bokeh-sampledata==2026.1
    python -m mtmm_jax.data.sources.films.pack --wheel bokeh_sampledata-2026.1-py3-none-any.whl

Two runs give the same bytes. Users never need it: the asset is part of the package. Releases of
that package before 2026.1 hold other data, which may not be used commercially, and are refused.
"""

from __future__ import annotations

import re
import sqlite3
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mtmm_jax.data.sources import packed
from mtmm_jax.data.sources.films import asset, card

LIMIT = 4_000_000  # bytes
DATABASE = "bokeh_sampledata/_data/movies.db"
MEMBERS = {DATABASE: "1d9c6a02e488d0354b2309e16130c58820a91ac2ce417e814c5964f9579a65ac"}
HELD_OUT = {"validation": 0.1, "test": 0.1}
_QUERY = """
    select o.imdbID, o.Title, o.Year, o.Released, o.Runtime, o.Director, o.Writer, o.Cast,
        t.Production, o.Language, o.Country, o.Genre, o.Rating, t.Meter, o.Metacritic, t.BoxOffice,
        t.Reviews, o.Oscars
    from omdb o join tomatoes t on o.ID = t.ID order by o.ID
"""


def plain(title: str) -> str:
    """A title without case, accents and punctuation: what two films of one name share."""
    letters = unicodedata.normalize("NFKD", title.casefold())
    spaced = re.sub(r"[\W_]+", " ", "".join(c for c in letters if not unicodedata.combining(c)))
    return spaced.strip() or title


def groups(films: Sequence[tuple[str, str]]) -> list[str]:
    """A key for each `(imdb, title)`: films with the same title, or identifier, share one.

    So remakes, which have the plot in common, and versions of one film are in the same split.
    """
    root: dict[str, str] = {}

    def find(key: str) -> str:
        while root.setdefault(key, key) != key:
            key = root[key]
        return key

    pairs = [("title " + plain(title), "imdb " + imdb) for imdb, title in films]
    for pair in pairs:
        first, second = sorted(map(find, pair))
        root[second] = first
    return [find(title) for title, _ in pairs]


def film(row: Mapping[str, Any], split: str) -> asset.Film:
    _, month, day = map(int, row["Released"].split("-"))
    gross = row["BoxOffice"]
    return asset.Film(
        imdb=row["imdbID"],
        title=row["Title"],
        year=row["Year"],
        month=None if (month, day) == (1, 1) else month,  # how "some time that year" is written
        runtime=row["Runtime"],
        director=row["Director"] or "",
        writer=row["Writer"] or "",
        cast=row["Cast"] or "",
        production=row["Production"] or "",
        languages=several(row["Language"]),
        countries=several(row["Country"]),
        genres=several(row["Genre"]),
        rating=asset.OLD_RATINGS.get(row["Rating"], row["Rating"] or ""),
        tomatometer=row["Meter"],
        metacritic=row["Metacritic"],
        box_office=gross if gross is not None and gross >= asset.LEAST_GROSS else None,
        reviews=row["Reviews"],
        oscars=row["Oscars"],
        split=split,
    )


def several(value: str | None) -> tuple[str, ...]:
    """The values that a field joins, in the order of the alphabet, each once."""
    return tuple(sorted({part for part in (value or "").split(", ") if part}))


def pack(files: Mapping[str, bytes], out: Path) -> None:
    """Writes the asset into `out`."""
    connection = sqlite3.connect(":memory:")
    connection.deserialize(files[DATABASE])
    connection.row_factory = sqlite3.Row
    rows = connection.execute(_QUERY).fetchall()
    connection.close()
    splits = packed.deal(groups([(row["imdbID"], row["Title"]) for row in rows]), HELD_OUT)
    asset.write(out, [film(row, split) for row, split in zip(rows, splits, strict=True)])


def main(arguments: Sequence[str] | None = None) -> int:
    return packed.main("films", __doc__, LIMIT, MEMBERS, pack, card.render, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
