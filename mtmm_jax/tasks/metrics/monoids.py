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


class Metric(NamedTuple):
    """A metric, or a family of figures from one state.

    Attributes:
        update: `(prediction, labels) -> state` of one batch; pure, runs under jit.
        merge: of two states; associative.
        compute: `state -> {figure: value}`; NaN where nothing was counted.
    """

    update: Callable[[Any, Any], Any]
    merge: Callable[[Any, Any], Any]
    compute: Callable[[Any], dict[str, float]]


def add(a: Any, b: Any) -> Any:
    return jax.tree.map(np.add, a, b)


def collect(a: Any, b: Any) -> Any:
    return jax.tree.map(lambda x, y: np.concatenate([x, y]), a, b)


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

    return Metric(update, add, compute)


def top(k: int) -> Metric:
    """The share of rows whose class is among the k likeliest."""

    def update(logits: jax.Array, labels: Any) -> dict[str, jax.Array]:
        y = jnp.clip(labels.y, 0, logits.shape[-1] - 1)
        own = jnp.take_along_axis(logits, y[:, None], axis=-1)
        hit = (logits > own).sum(-1) < k
        return {"hits": jnp.where(hit, labels.weight, 0.0).sum(), "count": labels.weight.sum()}

    return Metric(update, add, lambda s: {f"top{k}": _ratio(s["hits"], s["count"])})


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

    return Metric(update, collect, compute)


def _average_precision(score: np.ndarray, truth: np.ndarray, weight: np.ndarray) -> float:
    order = np.argsort(-score, kind="stable")
    score, hits, weight = score[order], (truth * weight)[order], weight[order]
    ends = np.append(np.flatnonzero(np.diff(score)), len(score) - 1)
    found, taken = np.cumsum(hits)[ends], np.cumsum(weight)[ends]
    return float((np.diff(found, prepend=0.0) * found / taken).sum() / found[-1])


def label_f1(thresholds: np.ndarray) -> Metric:
    """micro- and macro-F1 of labels `[B, C]`, each said where its probability is above its own.

    Macro is the mean over the classes that occur or are said; a constant state, so it adds up.

    Args:
        thresholds: `[C]` probabilities in (0, 1).
    """
    cut = np.log(thresholds) - np.log1p(-np.asarray(thresholds, np.float64))

    def update(logits: jax.Array, labels: Any) -> dict[str, jax.Array]:
        weight = labels.weight.astype(jnp.float32)[:, None]
        said = jnp.where(weight > 0, logits.astype(jnp.float32) > cut.astype(np.float32), False)
        truth = jnp.zeros_like(logits) if labels.y is None else labels.y
        true = jnp.where(weight > 0, truth, 0.0) > 0.5
        counts = {"hits": said & true, "said": said, "true": true}
        return {key: jnp.where(rows, weight, 0.0).sum(0) for key, rows in counts.items()}

    def compute(state: dict[str, Any]) -> dict[str, float]:
        hits, said, true = (np.asarray(state[k], np.float64) for k in ("hits", "said", "true"))
        seen = said + true > 0
        f1 = 2 * hits[seen] / (said + true)[seen]
        return {
            "micro_f1": _ratio(2 * hits.sum(), (said + true).sum()),
            "macro_f1": float(f1.mean()) if seen.any() else float("nan"),
        }

    return Metric(update, add, compute)


def regression_errors(mean: float, std: float) -> Metric:
    """R2, mean absolute error and root mean squared error, in the label's own unit.

    Sums are taken of the standardised values, where float32 loses nothing.
    """

    def update(prediction: jax.Array, labels: Any) -> dict[str, jax.Array]:
        y = jnp.where(labels.weight > 0, (labels.y - mean) / std, 0.0)
        error = jnp.where(labels.weight > 0, prediction - y, 0.0)
        w = labels.weight
        return {
            "count": w.sum(),
            "y": (w * y).sum(),
            "yy": (w * y * y).sum(),
            "squared": (w * error * error).sum(),
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

    return Metric(update, add, compute)


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
        figures = {
            f"{prefix}_recall@{k}": float(
                np.clip((k - answers["above"]) / answers["level"], 0, 1).mean()
            )
            if len(answers["above"])
            else float("nan")
            for k in ks
        }
        middle = answers["above"] + (answers["level"] + 1) / 2
        figures[f"{prefix}_median_rank"] = float(np.median(middle)) if len(middle) else float("nan")
        return figures

    return Metric(update, collect, compute)


def ranked(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Scores of every query against the distinct candidates, and where the right one stands.

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
