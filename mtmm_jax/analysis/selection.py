"""Mutual information of each modality, and of each feature, with a label, ranked.

Plain NumPy over features `[N, D]` and one label a row, in bits. Nearest neighbours, no bins: the
estimate of Kraskov et al. (2004) for numbers, and of Ross (2014) for classes. It looks at inputs
(or at an encoder's features) alone, so that it can be asked before anything is trained to use them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from scipy.spatial import cKDTree
from scipy.special import digamma

from mtmm_jax.batch import Batch, Spec
from mtmm_jax.registry import ConfigError

NEIGHBOURS = 3
DIRECTIONS = 4  # of a modality, beyond which neighbours are far away from each other
FEWEST = 32  # rows that have the modality and the label; below this nothing is said
MOST = 2000  # rows that are looked at
BEST = 5  # features of a modality that are listed
_NATS = np.log(2)
_JITTER = 1e-9  # of the unit deviation: ties would have neighbours at distance 0


def mutual_information(
    x: np.ndarray, y: np.ndarray, discrete: bool, neighbours: int = NEIGHBOURS
) -> float:
    """I(x; y) in bits, from 0 upwards.

    y a class (Ross 2014): psi(N) + psi(k) - mean psi(N_y) - mean psi(m + 1), where m counts the
    rows nearer to x than its k-th neighbour of the same class. y a number (Kraskov et al. 2004,
    the first estimate): psi(N) + psi(k) - mean [psi(n_x + 1) + psi(n_y + 1)], where n counts the
    rows nearer in x, or in y, than the k-th neighbour in both. Distances are the largest over the
    dimensions, all of unit deviation. Nearly without bias where x and y are unrelated; below the
    truth where they determine each other, or x has many dimensions. Costs N log N in few
    dimensions.

    Args:
        x: `[N]` or `[N, D]`, finite.
        y: `[N]`, classes or numbers.
        discrete: whether y is a class. A class of one row says nothing, and is left out.
        neighbours: k; more of them vary less and are more biased.
    """
    x = _scaled(np.asarray(x, np.float64).reshape(len(x), -1))
    y = np.asarray(y)
    if len(x) != len(y) or y.ndim != 1:
        raise ConfigError(f"mutual_information: {x.shape} against {y.shape}; one label for a row")
    bits = (_of_class if discrete else _of_number)(x, y, neighbours) / _NATS
    return max(float(bits), 0.0)


def _scaled(x: np.ndarray) -> np.ndarray:
    """Unit deviation, and no two rows quite the same."""
    if not np.isfinite(x).all():
        raise ConfigError("mutual_information: needs finite numbers")
    deviation = x.std(0)
    x = (x - x.mean(0)) / np.where(deviation > 0, deviation, 1.0)
    return x + _JITTER * np.random.default_rng(0).standard_normal(x.shape)


def _of_class(x: np.ndarray, y: np.ndarray, neighbours: int) -> float:
    _, label, sizes = np.unique(y, return_inverse=True, return_counts=True)
    keep = sizes[label] > 1
    if keep.sum() <= 1 or (sizes > 1).sum() < 2:
        return 0.0
    x, label = x[keep], label[keep]
    radius, used = np.empty(len(x)), np.empty(len(x))
    for c in np.flatnonzero(sizes > 1):
        here = label == c
        k = min(neighbours, int(sizes[c]) - 1)
        distance, _ = cKDTree(x[here]).query(x[here], k + 1, p=np.inf)
        radius[here], used[here] = distance[:, -1], k
    nearer = _within(x, radius)
    counts = digamma(sizes[label])
    return float(
        digamma(len(x)) + digamma(used).mean() - counts.mean() - digamma(nearer + 1).mean()
    )


def _of_number(x: np.ndarray, y: np.ndarray, neighbours: int) -> float:
    y = _scaled(np.asarray(y, np.float64)[:, None])
    k = min(neighbours, len(x) - 1)
    distance, _ = cKDTree(np.hstack([x, y])).query(np.hstack([x, y]), k + 1, p=np.inf)
    near = digamma(_within(x, distance[:, -1]) + 1) + digamma(_within(y, distance[:, -1]) + 1)
    return float(digamma(len(x)) + digamma(k) - near.mean())


def _within(x: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """The number of other rows that are strictly nearer."""
    inside = np.nextafter(radius, 0)
    return cKDTree(x).query_ball_point(x, inside, p=np.inf, return_length=True) - 1


def rank(
    features: Mapping[str, np.ndarray],
    present: Mapping[str, np.ndarray],
    y: np.ndarray,
    labelled: np.ndarray,
    discrete: bool,
) -> list[dict[str, Any]]:
    """The modalities, the one most informative about a label first.

    A modality's metric is that of its `DIRECTIONS` leading principal components, a feature's its
    own. `alone` is what the modality says beyond the best of the others, I(x, x'; y) - I(x'; y):
    near 0 where it is redundant; above its own metric where only both tell (synergy). All of it is
    over the rows that have the label and the modality, `MOST` at most. The best of many features
    say something by chance where rows are few; a modality's own metric is no such choice.

    Args:
        features: modality -> `[N, D]`.
        present: modality -> `[N]` bool.
        y: `[N]`.
        labelled: `[N]` bool.
        discrete: whether y is a class.

    Returns:
        For each modality `{"modality", "samples", "bits", "alone", "next_to", "features"}`, the
        last `[[number, bits], ...]` of the `BEST` ones. Scores are None where too few rows have
        both.
    """
    ranked = []
    for name, x in features.items():
        rows = _some(present[name] & labelled)
        row: dict[str, Any] = {"modality": name, "samples": len(rows), "bits": None}
        row |= {"alone": None, "next_to": None, "features": []}
        if len(rows) >= FEWEST:
            row["bits"] = mutual_information(_leading(x[rows]), y[rows], discrete)
            own = [
                (i, mutual_information(x[rows, i], y[rows], discrete)) for i in _varying(x, rows)
            ]
            own.sort(key=lambda pair: -pair[1])
            row["features"] = [[int(i), bits] for i, bits in own[:BEST]]
        ranked.append(row)
    ranked.sort(key=lambda row: -1.0 if row["bits"] is None else -row["bits"] - 1)
    _beyond(ranked, features, present, y, labelled, discrete)
    return ranked


def _beyond(
    ranked: list[dict[str, Any]],
    features: Mapping[str, np.ndarray],
    present: Mapping[str, np.ndarray],
    y: np.ndarray,
    labelled: np.ndarray,
    discrete: bool,
) -> None:
    """Adds `alone` and `next_to`, the best of the others."""
    for row in ranked:
        others = [other["modality"] for other in ranked if other is not row and other["features"]]
        if not others or row["bits"] is None:
            continue
        name, best = row["modality"], others[0]
        rows = _some(present[name] & present[best] & labelled)
        if len(rows) < FEWEST:
            continue
        one, other = (_leading(features[n][rows]) for n in (name, best))
        both = mutual_information(np.hstack([one, other]), y[rows], discrete)
        row["next_to"] = best
        row["alone"] = both - mutual_information(other, y[rows], discrete)


def _some(keep: np.ndarray) -> np.ndarray:
    """At most `MOST` of the rows, evenly spread."""
    rows = np.flatnonzero(keep)
    if len(rows) <= MOST:
        return rows
    return rows[np.linspace(0, len(rows) - 1, MOST).round().astype(int)]


def _varying(x: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return np.flatnonzero(np.ptp(x[rows], axis=0) > 0)


def _leading(x: np.ndarray) -> np.ndarray:
    """The leading principal components, of unit deviation each."""
    x = np.asarray(x, np.float64) - x.mean(0)
    _, sizes, directions = np.linalg.svd(x, full_matrices=False)
    kept = max(1, int((sizes > 1e-6 * max(sizes[0], 1e-30)).sum()))
    return x @ directions[: min(DIRECTIONS, kept)].T


def labels_of(batches: Iterable[Batch], spec: Spec) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Label -> `[N]` values and `[N]` who has one, of the labels in the batches that
    come down to one class or number each."""
    found: dict[str, tuple[list[np.ndarray], list[np.ndarray]]] = {}
    for batch in batches:
        keep = np.asarray(batch["weight"]) > 0
        for name, target in spec.targets.items():
            if target.traits.value is None:
                continue
            entry = batch["targets"].get(name)
            y = np.zeros(len(keep)) if entry is None else target.traits.value(entry["y"])
            here = np.zeros(len(keep), bool) if entry is None else np.asarray(entry["present"])
            values, there = found.setdefault(name, ([], []))
            values.append(np.where(here, y, 0)[keep])
            there.append(here[keep])
    return {name: (np.concatenate(a), np.concatenate(b)) for name, (a, b) in found.items()}


def selection(
    features: Mapping[str, np.ndarray],
    present: Mapping[str, np.ndarray],
    labels: Mapping[str, tuple[np.ndarray, np.ndarray]],
    spec: Spec,
) -> dict[str, list[dict[str, Any]]]:
    """`rank` for each label that more than one value of is there.

    Args:
        features, present: as `modality_affinity.pooled_features` gives them, or inputs.
        labels: as `labels_of` gives them, row for row.
        spec: tells classes from numbers, and which modalities a label is made from: they are left
            out.
    """
    ranked = {}
    for name, (y, here) in labels.items():
        if len(np.unique(y[here])) < 2:
            continue
        target = spec.targets[name]
        kept = {m: x for m, x in features.items() if m not in target.made_from}
        ranked[name] = rank(kept, present, y, here, target.traits.discrete)
    return ranked
