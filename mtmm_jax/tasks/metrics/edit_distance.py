"""Texts of token ids, and their edit distances from labels: CER, WER, exact match."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mtmm_jax.tasks.metrics.intervals import Interval, of_ratio, wilson
from mtmm_jax.tasks.metrics.monoids import Metric, collect

UNKNOWN = "\N{REPLACEMENT CHARACTER}"  # one character, where a tokenizer says [UNK]
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # what stands for a space in pieces of words


def edit_distances(guesses: Sequence[Sequence[Any]], truths: Sequence[Sequence[Any]]) -> np.ndarray:
    """`[N]`: insertions, deletions and substitutions from each guess to its truth (Levenshtein).

    One pass over the longest guess for all pairs at once. With t the best ways that end in a
    substitution or a deletion, the insertions of a row, d_j = min(t_j, d_{j-1} + 1), are a running
    minimum: d_j = j + min_{k <= j} (t_k - k).
    """
    codes: dict[Any, int] = {}
    a, a_length = _padded(guesses, codes)
    b, b_length = _padded(truths, codes)
    steps = np.arange(b.shape[1] + 1)
    distance = np.broadcast_to(steps, (len(b), len(steps))).copy()
    for i in range(a.shape[1]):
        through = distance + 1
        swapped = distance[:, :-1] + (a[:, i, None] != b)
        np.minimum(through[:, 1:], swapped, out=through[:, 1:])
        through = steps + np.minimum.accumulate(through - steps, axis=1)
        distance = np.where((i < a_length)[:, None], through, distance)
    return np.take_along_axis(distance, b_length[:, None], 1)[:, 0]


def _padded(rows: Sequence[Sequence[Any]], codes: dict[Any, int]) -> tuple[np.ndarray, np.ndarray]:
    lengths = np.array([len(row) for row in rows], np.int64)
    ids = np.full((len(rows), lengths.max(initial=0)), -1, np.int64)
    for into, row in zip(ids, rows, strict=True):
        into[: len(row)] = [codes.setdefault(symbol, len(codes)) for symbol in row]
    return ids, lengths


def detokenizer(classes: Sequence[str]) -> Callable[[Any], str]:
    """Ids -> text: characters or pieces of words joined, id 0 left out, unknown as one sign."""
    pieces = [
        "",
        *(UNKNOWN if name == "[UNK]" else name.replace(_SPACE, " ") for name in classes[1:]),
    ]
    return lambda ids: "".join(pieces[int(i)] for i in ids).strip(" ")


def text_errors(texts_of: Callable[[Any], jax.Array], classes: Sequence[str]) -> Metric:
    """Errors of whole texts: `cer` and `wer` (edits over length, in characters and in words; above
    1 where more is said than there is) and `exact_match`, the share of texts without an error.

    Rows are collected and compared on the host.

    Args:
        texts_of: prediction -> `[B, N]` ids, 0 after the end.
        classes: the target's.
    """
    text = detokenizer(classes)

    def update(prediction: Any, labels: Any) -> dict[str, jax.Array]:
        guess = texts_of(prediction)
        truth = jnp.zeros_like(guess) if labels.y is None else labels.y
        kept = labels.weight[:, None] > 0
        return {
            "guess": jnp.where(kept, guess, 0),
            "truth": jnp.where(kept, jnp.clip(truth, 0, len(classes) - 1), 0),
            "weight": labels.weight.astype(jnp.float32),
        }

    def compute(state: dict[str, np.ndarray]) -> dict[str, float]:
        kept = state["weight"] > 0
        weight = state["weight"][kept].astype(np.float64)
        guesses, truths = (list(map(text, state[key][kept])) for key in ("guess", "truth"))
        same = [guess == truth for guess, truth in zip(guesses, truths, strict=True)]
        words = [[one.split() for one in texts] for texts in (guesses, truths)]
        return {
            "cer": _rate(guesses, truths, weight),
            "wer": _rate(*words, weight),
            "exact_match": float(np.average(same, weights=weight)) if same else float("nan"),
        }

    def intervals(state: dict[str, np.ndarray]) -> dict[str, Interval | str]:
        kept = state["weight"] > 0
        weight = state["weight"][kept].astype(np.float64)
        texts = [list(map(text, state[key][kept])) for key in ("guess", "truth")]
        words = [[one.split() for one in some] for some in texts]
        same = [guess == truth for guess, truth in zip(*texts, strict=True)]
        return {
            "cer": of_ratio(*_edits(*texts, weight)),
            "wer": of_ratio(*_edits(*words, weight)),
            "exact_match": wilson(float((weight * same).sum()), float(weight.sum())),
        }

    return Metric(update, collect, compute, intervals)


def _rate(guesses: Sequence[Any], truths: Sequence[Any], weight: np.ndarray) -> float:
    edits, lengths = _edits(guesses, truths, weight)
    return float(edits.sum() / lengths.sum()) if lengths.sum() else np.nan


def _edits(
    guesses: Sequence[Any], truths: Sequence[Any], weight: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """`[N]` edits of each text, and its length."""
    lengths = np.array([len(truth) for truth in truths], np.float64)
    return weight * edit_distances(guesses, truths), weight * lengths
