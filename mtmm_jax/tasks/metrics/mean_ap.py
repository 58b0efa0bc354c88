"""Mean average precision of detections: rows collected on the device, matched on the host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mtmm_jax.tasks.metrics import monoids as metrics

THRESHOLDS = tuple(float(x) for x in np.arange(50, 100, 5) / 100)
_RECALLS = np.linspace(0.0, 1.0, 101)


class Found(NamedTuple):
    """Detections of a batch, in falling order of score; a score of 0 is no detection.

    Attributes:
        boxes: `[B, K, 4]`, y0, x0, y1, x1 in 0..1.
        scores: `[B, K]`.
        classes: `[B, K]`.
        alone: `[B, K]` bool, false where a surer one of another class is in the same place.
    """

    boxes: jax.Array
    scores: jax.Array
    classes: jax.Array
    alone: jax.Array


class Truth(NamedTuple):
    """Boxes that are there: `boxes [B, N, 4]`, `classes [B, N]`, `valid [B, N]`; no filler."""

    boxes: jax.Array
    classes: jax.Array
    valid: jax.Array


def mean_average_precision(
    detect: Callable[[Any], Found], truth_of: Callable[[Any], Truth]
) -> metrics.Metric:
    """mAP@.5, mAP@.5:.95 (the mean over ten overlaps), and located@.5, the same without classes:
    one detection a place, whatever it was taken for.

    In each picture the detections of a class, the surest first, take the free box of that class
    that they overlap most, if by enough; what takes none is false. Precision at a recall is the
    best at that recall or above, averaged over 101 recalls from 0 to 1, then over the classes that
    occur, as for COCO (Lin et al. 2014). Detections of one score in different pictures are counted
    together: the order of pictures changes nothing.

    Args:
        detect: prediction -> `Found`; under jit.
        truth_of: `Labels` -> `Truth`.
    """

    def update(prediction: Any, labels: Any) -> dict[str, jax.Array]:
        found, truth = detect(prediction), truth_of(labels)
        return {
            **{f"found_{key}": value for key, value in found._asdict().items()},
            **{f"true_{key}": value for key, value in truth._asdict().items()},
            "weight": labels.weight.astype(jnp.float32),
        }

    def compute(state: dict[str, np.ndarray]) -> dict[str, float]:
        kept = np.asarray(state["weight"]) > 0
        rows = {key: np.asarray(value)[kept] for key, value in state.items()}
        by_class = _average_precisions(rows, THRESHOLDS)
        blind = {key: np.zeros_like(rows[key]) for key in ("found_classes", "true_classes")}
        blind["found_scores"] = np.where(rows["found_alone"], rows["found_scores"], 0.0)
        return {
            "mAP@.5": _mean(by_class[:, 0]),
            "mAP@.5:.95": _mean(by_class),
            "located@.5": _mean(_average_precisions({**rows, **blind}, THRESHOLDS[:1])),
        }

    return metrics.Metric(update, metrics.collect, compute)


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else float("nan")


def _average_precisions(rows: dict[str, np.ndarray], thresholds: tuple[float, ...]) -> np.ndarray:
    """`[classes that occur, T]`."""
    weight = rows["weight"].astype(np.float64)
    right = _matched(rows, thresholds)
    is_one = rows["found_scores"] > 0
    owner, place = np.nonzero(is_one)
    score, kind = rows["found_scores"][is_one], rows["found_classes"][is_one]
    right, share = right[owner, :, place], weight[owner]
    there = rows["true_valid"]
    values = []
    for c in np.unique(rows["true_classes"][there]):
        total = (weight * (there & (rows["true_classes"] == c)).sum(1)).sum()
        mine = kind == c
        values.append(_interpolated(score[mine], right[mine], share[mine], total))
    return np.array(values).reshape(-1, len(thresholds))


def _matched(rows: dict[str, np.ndarray], thresholds: tuple[float, ...]) -> np.ndarray:
    """`[R, T, K]` bool: which detections have a box of their own."""
    overlap = _iou(rows["found_boxes"], rows["true_boxes"])
    same = rows["found_classes"][:, :, None] == rows["true_classes"][:, None, :]
    # Not even a threshold of 0 is met by what cannot be matched.
    overlap = np.where(same & rows["true_valid"][:, None], overlap, -1.0)
    count, detections, boxes = overlap.shape
    least = np.asarray(thresholds) - 1e-9
    right = np.zeros((count, len(thresholds), detections), bool)
    free = np.ones((count, len(thresholds), boxes), bool)
    order = np.argsort(-rows["found_scores"], axis=1, kind="stable")
    everyone = np.arange(count)
    if not boxes:
        return right
    for k in order.T:
        best = np.where(free, overlap[everyone, k][:, None], -1.0)
        choice = best.argmax(-1)
        hit = best.max(-1) >= least
        hit &= (rows["found_scores"][everyone, k] > 0)[:, None]
        right[everyone, :, k] = hit
        np.put_along_axis(
            free,
            choice[..., None],
            np.take_along_axis(free, choice[..., None], -1) & ~hit[..., None],
            -1,
        )
    return right


def _iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """`[R, K, 4]`, `[R, N, 4]` -> `[R, K, N]`, in double precision."""
    a, b = a.astype(np.float64)[:, :, None], b.astype(np.float64)[:, None]
    shared = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    shared = np.maximum(shared, 0).prod(-1)
    areas = [np.maximum(x[..., 2:] - x[..., :2], 0).prod(-1) for x in (a, b)]
    return shared / np.maximum(sum(areas) - shared, 1e-12)


def _interpolated(
    score: np.ndarray, right: np.ndarray, weight: np.ndarray, total: float
) -> np.ndarray:
    """`[T]` from scores `[D]`, hits `[D, T]` and the weight of everything that is to be found."""
    if not len(score):
        return np.zeros(right.shape[1])
    order = np.argsort(-score, kind="stable")
    score, right, weight = score[order], right[order], weight[order]
    ends = np.append(np.flatnonzero(np.diff(score)), len(score) - 1)
    found = np.cumsum(right * weight[:, None], 0)[ends]
    precision = found / np.cumsum(weight)[ends, None]
    best = np.maximum.accumulate(precision[::-1], 0)[::-1]
    best = np.concatenate([best, np.zeros((1, best.shape[1]))])
    columns = zip(found.T / total + 1e-9, best.T, strict=True)
    return np.array([b[np.searchsorted(recall, _RECALLS)].mean() for recall, b in columns])
