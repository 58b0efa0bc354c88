"""The data card: prose and tables, the numbers counted from the asset."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from mtmm_jax.data.pipeline.source import SPLITS
from mtmm_jax.data.sources import packed
from mtmm_jax.data.sources.films import asset
from mtmm_jax.data.sources.films.asset import RATINGS, Film
from mtmm_jax.data.sources.films.source import TEXTS

_TEMPLATE = Path(__file__).with_name("card_template.md")
_LABELS: dict[str, tuple[str, Callable[[Film], bool]]] = {
    "genre": ("any of {genres} genres", lambda film: bool(film.genres)),
    "tomatometer": ("number", lambda film: film.tomatometer is not None),
    "metacritic": ("number", lambda film: film.metacritic is not None),
    "rating": ("one of {ratings} classes", lambda film: bool(film.rating)),
    "box_office": ("number", lambda film: film.box_office is not None),
}


def render(folder: Path = asset.FOLDER) -> str:
    """The text of CARD.md for the asset in `folder`."""
    films = asset.read(folder)
    genres = Counter(genre for film in films for genre in film.genres)
    with_genre = sum(bool(film.genres) for film in films)
    most, count = genres.most_common(1)[0]
    return _TEMPLATE.read_text(encoding="utf-8").format(
        films=len(films),
        first=min(film.year for film in films),
        last=max(film.year for film in films),
        size=sum(path.stat().st_size for path in folder.iterdir()),
        fields=_fields(films),
        months=sum(film.month is not None for film in films),
        labels=_labels(films, len(genres)),
        least=asset.LEAST_GROSS,
        old=", ".join(f"{old} as {new}" for old, new in asset.OLD_RATINGS.items()),
        genres_a_film=sum(genres.values()) / with_genre,
        most=most,
        most_share=count / with_genre,
        always=2 * count / (with_genre + count),
        genres=_counted("genre", films, sorted(genres), lambda film: film.genres),
        ratings=_counted("rating", films, RATINGS, lambda film: (film.rating,)),
        splits=packed.table(
            ["split", "films"],
            [[split, sum(film.split == split for film in films)] for split in SPLITS],
        ),
        american=np.mean(["United States" in film.countries for film in films]),
        english=np.mean(["English" in film.languages for film in films]),
        shortest=min(film.runtime for film in films if film.runtime),
    )


def _fields(films: Sequence[Film]) -> str:
    rows = []
    for field in TEXTS:
        known = [getattr(film, field) for film in films if getattr(film, field)]
        rows.append([field, len(known), round(float(np.median([len(t.split()) for t in known])))])
    return packed.table(["field", "films that have it", "words, median"], rows)


def _labels(films: Sequence[Film], genres: int) -> str:
    rows = []
    for name, (kind, has) in _LABELS.items():
        counts = [sum(has(film) for film in films if film.split == split) for split in SPLITS]
        share = f"{sum(counts) / len(films):.1%}"
        kind = kind.format(genres=genres, ratings=len(RATINGS))
        rows.append([name, kind, *counts, sum(counts), share])
    return packed.table(["label", "kind", *SPLITS, "all", "share of films"], rows)


def _counted(
    title: str,
    films: Sequence[Film],
    values: Sequence[str],
    get: Callable[[Film], Sequence[str]],
) -> str:
    counts = [Counter(v for f in films if f.split == split for v in get(f)) for split in SPLITS]
    return packed.table([title, *SPLITS], [[v, *(count[v] for count in counts)] for v in values])
