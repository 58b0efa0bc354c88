"""Metrics as monoids: each batch gives a state, states merge, the end divides once.

A state of fixed size adds up (on the device, over microbatches and devices alike); a metric over
all pairs of samples collects its rows, and is computed on the host at the end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mtmm_jax.tasks.metrics.intervals import (
    Interval,
    of_counts,
    of_mean,
    of_r2,
    of_rows,
    of_skewed_mean,
    only,
    transformed,
    wilson,
)


class Metric(NamedTuple):
    """A metric, or a family of metrics from one state.

    Attributes:
        update: `(prediction, labels) -> state` of one batch; pure, runs under jit.
        merge: of two states; associative.
        compute: `state -> {metric: value}`; NaN where nothing was counted.
        intervals: `state -> {metric: Interval, or why there is none}` (`metrics.intervals`); of a
            metric that it leaves out there is none, and of all where it is None.
    """

    update: Callable[[Any, Any], Any]
    merge: Callable[[Any, Any], Any]
    compute: Callable[[Any], dict[str, float]]
    intervals: Callable[[Any], dict[str, Interval | str]] | None = None


def add(a: Any, b: Any) -> Any:
    return jax.tree.map(np.add, a, b)


def collect(a: Any, b: Any) -> Any:
    return jax.tree.map(lambda x, y: np.concatenate([x, y]), a, b)


DRAWN = 2_000  # rows of `points`


def points(mean: float, std: float) -> Metric:
    """No metric, but what is drawn of numbers: the label and the prediction of `DRAWN` rows.

    Args:
        mean, std: of the label; the prediction `[B]` is standardised.
    """

    def update(prediction: jax.Array, labels: Any) -> dict[str, jax.Array]:
        kept = labels.weight > 0
        predicted = prediction.astype(jnp.float32) * std + mean
        y = predicted if labels.y is None else labels.y.astype(jnp.float32)
        nothing = jnp.full_like(predicted, jnp.nan)
        counted = kept & (labels.y is not None)
        found = {"true": y, "predicted": predicted}
        return {key: jnp.where(counted, value, nothing)[:DRAWN] for key, value in found.items()}

    def merge(a: Any, b: Any) -> Any:
        both = collect(a, b)
        known = np.flatnonzero(np.isfinite(both["true"]))[:DRAWN]
        return {key: value[known] for key, value in both.items()}

    return Metric(update, merge, lambda state: {})


def _ratio(a: float, b: float) -> float:
    return float(a / b) if b > 0 else float("nan")


def confusion(classes: int) -> Metric:
    """accuracy and macro-F1, from counts `[true, predicted]`."""

    def update(logits: jax.Array, labels: Any) -> jax.Array:
        guess = logits.argmax(-1)
        y = jnp.clip(labels.y, 0, classes - 1)
        return jnp.zeros((classes, classes), jnp.float32).at[y, guess].add(labels.weight)

    def compute(counts: np.ndarray) -> dict[str, float]:
        counts = np.asarray(counts, np.float64)
        hits, true, guessed = np.diag(counts), counts.sum(1), counts.sum(0)
        seen = true + guessed > 0
        f1 = 2 * hits[seen] / (true + guessed)[seen]
        macro = float(f1.mean()) if seen.any() else float("nan")
        return {"accuracy": _ratio(hits.sum(), counts.sum()), "macro_f1": macro}

    def intervals(counts: np.ndarray) -> dict[str, Interval | str]:
        counts = np.asarray(counts, np.float64)
        share = wilson(np.trace(counts), counts.sum())
        return {"accuracy": share, **only(of_counts(compute, counts), "macro_f1")}

    return Metric(update, add, compute, intervals)


def top(k: int) -> Metric:
    """The share of rows whose class is among the k likeliest."""

    def update(logits: jax.Array, labels: Any) -> dict[str, jax.Array]:
        y = jnp.clip(labels.y, 0, logits.shape[-1] - 1)
        own = jnp.take_along_axis(logits, y[:, None], axis=-1)
        hit = (logits > own).sum(-1) < k
        return {"hits": jnp.where(hit, labels.weight, 0.0).sum(), "count": labels.weight.sum()}

    return Metric(
        update,
        add,
        lambda s: {f"top{k}": _ratio(s["hits"], s["count"])},
        lambda s: {f"top{k}": wilson(float(s["hits"]), float(s["count"]))},
    )


def average_precision() -> Metric:
    """The area under each class's precision-recall steps; the mean over classes with a positive.

    AP = sum_n (R_n - R_{n-1}) P_n over the distinct scores from the highest down, so that rows
    level with each other are taken together and a constant scores the class's share of positives.
    Logits `[B, C]`, labels `[B, C]` of 0 and 1; rows weigh as the batch says.
    """

    def update(logits: jax.Array, labels: Any) -> dict[str, jax.Array]:
        weight = labels.weight.astype(jnp.float32)
        kept = weight[:, None] > 0
        truth = jnp.zeros_like(logits) if labels.y is None else labels.y
        return {
            "score": jnp.where(kept, logits.astype(jnp.float32), 0.0),
            "truth": jnp.where(kept, truth, 0.0) > 0.5,
            "weight": weight,
        }

    def compute(state: dict[str, np.ndarray]) -> dict[str, float]:
        kept = state["weight"] > 0
        weight = state["weight"][kept].astype(np.float64)
        pairs = zip(state["score"][kept].T, state["truth"][kept].T, strict=True)
        values = [_average_precision(score, truth, weight) for score, truth in pairs if truth.any()]
        return {"average_precision": float(np.mean(values)) if values else float("nan")}

    def intervals(state: dict[str, np.ndarray]) -> dict[str, Interval | str]:
        kept = np.flatnonzero(np.asarray(state["weight"]) > 0)

        def drawn(rows: np.ndarray) -> dict[str, float]:
            return compute({key: np.asarray(value)[kept[rows]] for key, value in state.items()})

        classes = np.asarray(state["score"]).shape[1]
        return only(of_rows(drawn, len(kept), classes), "average_precision")

    return Metric(update, collect, compute, intervals)


def _average_precision(score: np.ndarray, truth: np.ndarray, weight: np.ndarray) -> float:
    order = np.argsort(-score, kind="stable")
    score, hits, weight = score[order], (truth * weight)[order], weight[order]
    ends = np.append(np.flatnonzero(np.diff(score)), len(score) - 1)
    found, taken = np.cumsum(hits)[ends], np.cumsum(weight)[ends]
    return float((np.diff(found, prepend=0.0) * found / taken).sum() / found[-1])


def label_f1(thresholds: np.ndarray) -> Metric:
    """micro- and macro-F1 of labels `[B, C]`, each predicted where its probability is above its own
    threshold.

    Macro is the mean over the classes that occur or are said; a constant state, so it adds up.

    Args:
        thresholds: `[C]` probabilities in (0, 1).
    """
    cut = np.log(thresholds) - np.log1p(-np.asarray(thresholds, np.float64))

    def update(logits: jax.Array, labels: Any) -> dict[str, jax.Array]:
        weight = labels.weight.astype(jnp.float32)[:, None]
        predicted = jnp.where(
            weight > 0, logits.astype(jnp.float32) > cut.astype(np.float32), False
        )
        truth = jnp.zeros_like(logits) if labels.y is None else labels.y
        true = jnp.where(weight > 0, truth, 0.0) > 0.5
        counts = {"hits": predicted & true, "said": predicted, "true": true}
        return {key: jnp.where(rows, weight, 0.0).sum(0) for key, rows in counts.items()}

    def compute(state: dict[str, Any]) -> dict[str, float]:
        hits, predicted, true = (np.asarray(state[k], np.float64) for k in ("hits", "said", "true"))
        seen = predicted + true > 0
        f1 = 2 * hits[seen] / (predicted + true)[seen]
        return {
            "micro_f1": _ratio(2 * hits.sum(), (predicted + true).sum()),
            "macro_f1": float(f1.mean()) if seen.any() else float("nan"),
        }

    def intervals(state: dict[str, Any]) -> dict[str, Interval | str]:
        return dict.fromkeys(("micro_f1", "macro_f1"), "labels of one example are counted apart")

    return Metric(update, add, compute, intervals)


def regression_errors(mean: float, std: float) -> Metric:
    """R2, mean absolute error and root mean squared error, in the label's own unit.

    Sums are taken of the standardised values, where float32 loses nothing.
    """

    def update(prediction: jax.Array, labels: Any) -> dict[str, jax.Array]:
        y = jnp.where(labels.weight > 0, (labels.y - mean) / std, 0.0)
        error = jnp.where(labels.weight > 0, prediction - y, 0.0)
        w, square = labels.weight, error * error
        return {
            "count": w.sum(),
            "y": (w * y).sum(),
            "yy": (w * y * y).sum(),
            "yyy": (w * y**3).sum(),
            "yyyy": (w * y**4).sum(),
            "squared": (w * square).sum(),
            "fourth": (w * square * square).sum(),
            "squared_y": (w * square * y).sum(),
            "squared_yy": (w * square * y * y).sum(),
            "absolute": (w * jnp.abs(error)).sum(),
        }

    def compute(state: dict[str, Any]) -> dict[str, float]:
        s = {key: float(value) for key, value in state.items()}
        spread = s["yy"] - s["y"] ** 2 / max(s["count"], 1.0)
        # Below the rounding of float32 sums there is no spread to explain, as with a single row.
        varies = spread > 1e-6 * max(s["yy"], 1.0)
        unexplained = _ratio(s["squared"], spread if varies else 0.0)
        return {
            "r2": 1.0 - unexplained,
            "mae": std * _ratio(s["absolute"], s["count"]),
            "rmse": std * _ratio(s["squared"], s["count"]) ** 0.5,
        }

    def intervals(state: dict[str, Any]) -> dict[str, Interval | str]:
        s = {key: float(value) for key, value in state.items()}
        absolute = of_mean(s["absolute"], s["squared"], s["count"], low=0.0)
        squared = of_skewed_mean(s["squared"], s["fourth"], s["count"])
        return {
            "r2": of_r2(s),
            "mae": transformed(absolute, lambda x: std * x),
            "rmse": transformed(squared, lambda x: std * x**0.5),
        }

    return Metric(update, add, compute, intervals)


def retrieval_ranks(queries: str, candidates: str, ks: tuple[int, ...] = (1, 10)) -> Metric:
    """recall@k and median rank of one modality's queries among all candidates of another.

    Every row of the split is a query; the candidates are the distinct ones (rows of one id with
    equal vectors count once). A query is answered by any candidate of its own id. Ties are
    broken at random in expectation: with g candidates above and e level with the best right one,
    it is in the first k with probability clip((k - g) / e, 0, 1), so that a constant embedding
    scores exactly chance.
    """

    def update(prediction: dict[str, Any], labels: Any) -> dict[str, jax.Array]:
        vectors = prediction["vectors"]
        ids = jnp.arange(labels.weight.shape[0]) if labels.id is None else labels.id
        return {
            "query": vectors[queries],
            "candidate": vectors[candidates],
            "id": jnp.where(labels.weight > 0, ids, -1),
        }

    def compute(state: dict[str, Any]) -> dict[str, float]:
        answers = ranked(state)
        prefix = f"{queries}_to_{candidates}"
        values = {
            f"{prefix}_recall@{k}": float(
                np.clip((k - answers["above"]) / answers["level"], 0, 1).mean()
            )
            if len(answers["above"])
            else float("nan")
            for k in ks
        }
        middle = answers["above"] + (answers["level"] + 1) / 2
        values[f"{prefix}_median_rank"] = float(np.median(middle)) if len(middle) else float("nan")
        return values

    def intervals(state: dict[str, Any]) -> dict[str, Interval | str]:
        """Over queries, among the same candidates."""
        answers = ranked(state)
        prefix, count = f"{queries}_to_{candidates}", len(answers["above"])
        hits = {k: np.clip((k - answers["above"]) / answers["level"], 0, 1).sum() for k in ks}
        middle, name = answers["above"] + (answers["level"] + 1) / 2, f"{prefix}_median_rank"
        medians = of_rows(lambda rows: {name: float(np.median(middle[rows]))}, count)
        shares = {f"{prefix}_recall@{k}": wilson(float(hits[k]), count) for k in ks}
        return {**shares, **only(medians, name)}

    return Metric(update, collect, compute, intervals)


def ranked(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Scores of every query against the distinct candidates, and the rank of the right one.

    Returns:
        `scores [Q, C]`, `query_id [Q]`, `candidate_id [C]`, and for each query how many candidates
        score `above` and `level` with (itself included) the best right one.
    """
    kept = state["id"] >= 0
    query_id, vectors = state["id"][kept], state["candidate"][kept].astype(np.float64)
    rows = np.concatenate([query_id[:, None].astype(np.float64), vectors.round(5)], axis=1)
    _, distinct = np.unique(rows, axis=0, return_index=True)
    distinct.sort()
    candidate_id = query_id[distinct]
    scores = state["query"][kept].astype(np.float64) @ vectors[distinct].T
    right = query_id[:, None] == candidate_id[None]
    best = np.where(right, scores, -np.inf).max(1, keepdims=True, initial=-np.inf)
    above = (scores > best + 1e-9).sum(1)
    level = np.maximum((np.abs(scores - best) <= 1e-9).sum(1), 1)
    return {
        "scores": scores,
        "query_id": query_id,
        "candidate_id": candidate_id,
        "above": above,
        "level": level,
    }
