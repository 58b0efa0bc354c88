"""The films' labels, with which films have them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mtmm_jax.batch import Target
from mtmm_jax.data.sources import packed
from mtmm_jax.data.sources.films.asset import RATINGS
from mtmm_jax.data.sources.films.columns import Films


class Label(NamedTuple):
    """`y` `[N, ...]`, zeros where not `present` `[N]`."""

    target: Target
    y: np.ndarray
    present: np.ndarray


def labels(films: Films, train: np.ndarray) -> dict[str, Label]:
    """Labels by target; `train` `[N]` bool marks the films that frequencies and means are of."""
    return {
        "genre": _genre(films, train),
        "tomatometer": _number(films["tomatometer"], train),
        "metacritic": _number(films["metacritic"], train),
        "rating": _rating(films, train),
        "box_office": _number(np.log10(films["box_office"]), train),
    }


def _genre(films: Films, train: np.ndarray) -> Label:
    """Several to a film. A film without any has no label, as each film is of some kind."""
    found = [set(text.split("\n")) if text else set() for text in films["genres"]]
    names = tuple(sorted(set().union(*found)))
    y = np.array([[name in film for name in names] for film in found], np.float32)
    present = y.any(1)
    frequencies = tuple(y[train & present].mean(0, dtype=np.float64).tolist())
    return Label(Target("labels", classes=names, frequencies=frequencies), y, present)


def _rating(films: Films, train: np.ndarray) -> Label:
    present = films["rating"] != ""
    y = np.array([RATINGS.index(rating) if rating else 0 for rating in films["rating"]], np.int32)
    frequencies = packed.frequencies(y[train & present], len(RATINGS))
    return Label(Target("class", classes=RATINGS, frequencies=frequencies), y, present)


def _number(values: np.ndarray, train: np.ndarray) -> Label:
    mean, std = packed.scale(values, train)
    y = np.nan_to_num(values).astype(np.float32)
    return Label(Target("number", mean=float(mean), std=float(std)), y, np.isfinite(values))
