"""The films' table: from what is known of a film to named numbers.

A number is standardised on the train split, 0 where it is unknown, with a column next to it that
says so; languages and countries are a column each, 1 where the film has it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mtmm_jax.data.sources import packed

LEAST_FILMS = 50  # of the train split, for a language or a country to have a column
Films = Mapping[str, np.ndarray]  # field -> `[N]` strings or numbers, as the builder has them


class Table(NamedTuple):
    """Columns: names, values `[N, C]` float32, and the mean and deviation of the standardised."""

    names: tuple[str, ...]
    values: np.ndarray
    scale: dict[str, dict[str, float]]


def _number(name: str, values: np.ndarray, train: np.ndarray) -> Table:
    mean, std = packed.scale(values, train)
    known = np.isfinite(values)
    standard = np.where(known, (values - mean) / std, 0)
    scale = {name: {"mean": float(mean), "std": float(std)}}
    if known.all():
        return Table((name,), standard[:, None], scale)
    return Table((name, f"{name}_missing"), np.stack([standard, ~known], 1), scale)


def _year(films: Films, train: np.ndarray) -> Table:
    return _number("year", films["year"], train)


def _runtime(films: Films, train: np.ndarray) -> Table:
    return _number("log_runtime", np.log(films["runtime"]), train)


def _month(films: Films, train: np.ndarray) -> Table:
    """A point on a circle, as December is next to January; its middle where unknown."""
    turn = films["month"] * (np.pi / 6)
    known = np.isfinite(turn)
    around = [np.where(known, wave(turn), 0) for wave in (np.sin, np.cos)]
    return Table(("month_sin", "month_cos", "month_missing"), np.stack([*around, ~known], 1), {})


def _several(name: str, joined: np.ndarray, train: np.ndarray) -> Table:
    """One column for each frequent value, one for all others, one for films without any."""
    found = [set(text.split("\n")) if text else set() for text in joined]
    trained = [values for values, use in zip(found, train, strict=True) if use]
    count = Counter(value for values in trained for value in values)
    frequent = sorted(value for value, films in count.items() if films >= LEAST_FILMS)
    columns = [[value in values for value in frequent] for values in found]
    other = [[bool(values - set(frequent)), not values] for values in found]
    names = (*(f"{name}_{value}" for value in frequent), f"{name}_other", f"{name}_missing")
    return Table(names, np.hstack([columns, other]), {})


def _languages(films: Films, train: np.ndarray) -> Table:
    return _several("language", films["languages"], train)


def _countries(films: Films, train: np.ndarray) -> Table:
    return _several("country", films["countries"], train)


def _listed(films: Films, train: np.ndarray) -> Table:
    def count(field: str) -> np.ndarray:
        return np.array([len(text.split(", ")) if text else 0 for text in films[field]])

    fields = ("director", "writer", "cast", "production")
    return _join([_number(f"log_{f}_listed", np.log1p(count(f)), train) for f in fields])


def _reviews(films: Films, train: np.ndarray) -> Table:
    return _number("log_reviews", np.log(films["reviews"]), train)


def _oscars(films: Films, train: np.ndarray) -> Table:
    return _number("log_oscars", np.log1p(films["oscars"]), train)


COLUMNS: dict[str, Callable[[Films, np.ndarray], Table]] = {
    "year": _year,
    "runtime": _runtime,
    "month": _month,
    "languages": _languages,
    "countries": _countries,
    "listed": _listed,
    "reviews": _reviews,
    "oscars": _oscars,
}
KNOWN_AT_RELEASE = ("year", "runtime", "month", "languages", "countries")


def table(films: Films, chosen: Sequence[str], train: np.ndarray) -> Table:
    """The chosen groups of columns side by side; `train` `[N]` bool marks the rows to fit on."""
    return _join([COLUMNS[name](films, train) for name in chosen])


def _join(parts: Sequence[Table]) -> Table:
    return Table(
        tuple(name for part in parts for name in part.names),
        np.hstack([part.values for part in parts]).astype(np.float32),
        {name: scale for part in parts for name, scale in part.scale.items()},
    )
