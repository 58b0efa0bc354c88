"""References of the fuzz for the methods of the Gramian tier, in NumPy and float64.

None shares code or a derivation with the methods: those work on K x K Gramians of unit vectors
with pivoting, Newton and Jacobi rotations; these work on the rows themselves.

| method | reference | where it is from |
|---|---|---|
| mgda | Lawson & Hanson's NNLS of the rows with a row of ones | SciPy; Wolfe 1976 |
| upgrad, dualproj | NNLS: a cone's projection is a residual | SciPy; Moreau |
| cagrad | least distance programs, bisected over the level | Lawson & Hanson, ch. 23 |
| pcd | one least distance program | the same |
| nash, fairgrad | the Newton decrement at the result | the defining equation |
| imtl_g, conflict_free | least squares by an SVD of the unit rows | NumPy's lstsq |
| aligned_mtl | SVD of the rows | NumPy |
| krum, pcgrad | loops over rows | the papers' pseudocode |

Each returns the update for given rows; NaN where the problem has no unique answer (`UNDEFINED`).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy.optimize

Update = Callable[[np.ndarray], np.ndarray]


def split(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Norms and unit rows, of those that are not zero."""
    norms = np.linalg.norm(rows, axis=1)
    return norms, rows / np.where(norms > 0, norms, 1)[:, None]


def _nnls(matrix: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The solution and the residual `A z - b`."""
    z, _ = scipy.optimize.nnls(matrix, right, maxiter=50 * matrix.shape[1] + 100)
    return z, matrix @ z - right


def mgda(rows: np.ndarray) -> np.ndarray:
    """The point of least norm of the convex hull."""
    norms, _ = split(rows)
    if not norms.all():
        return np.zeros(rows.shape[1])
    near = rows / norms.min()
    # Rows of very different lengths: columns of unit length, as NNLS is scaled by columns.
    columns = np.vstack([near.T, np.ones(len(rows))])
    lengths = np.linalg.norm(columns, axis=0)
    z, _ = _nnls(columns / lengths, np.append(np.zeros(rows.shape[1]), 1.0))
    z = z / lengths
    return near.T @ (z / z.sum()) * norms.min()


def far_from_stationary(rows: np.ndarray) -> bool:
    """Whether zero is clearly outside the convex hull of the rows that are not zero."""
    norms, units = split(rows)
    near = mgda(units[norms > 0]) if (norms > 0).any() else np.zeros(1)
    return bool(np.linalg.norm(near) > 1e-3)


def _projected(rows: np.ndarray, lower: np.ndarray, reg: float) -> np.ndarray:
    """`J^T v` for `argmin_{v >= u} v^T (G / trace + reg I) v`."""
    root = np.linalg.norm(rows)
    near = np.hstack([rows / (root or 1.0), np.sqrt(reg) * np.eye(len(rows))])
    lengths = np.linalg.norm(near, axis=1)
    units = near / np.where(lengths > 0, lengths, 1)[:, None]
    scaled = lower * lengths
    size = np.abs(scaled).max() or 1.0
    z, _ = _nnls(units.T, -units.T @ (scaled / size))
    weights = lower + z * size / np.where(lengths > 0, lengths, 1)
    return rows.T @ weights


def upgrad(rows: np.ndarray, reg: float = 1e-4) -> np.ndarray:
    """The sum of the projections of each `g_i / K`."""
    each = np.eye(len(rows)) / len(rows)
    return sum(_projected(rows, u, reg) for u in each)


def dualproj(rows: np.ndarray, reg: float = 1e-4) -> np.ndarray:
    """The projection of the mean."""
    return _projected(rows, np.ones(len(rows)) / len(rows), reg)


def least_distance(rows: np.ndarray, bounds: np.ndarray) -> np.ndarray | None:
    """`argmin ||x||` such that `rows x >= bounds`; None where no x is."""
    size = max(np.abs(bounds).max(), 1e-300)
    target = np.append(np.zeros(rows.shape[1]), 1.0)
    _, residual = _nnls(np.vstack([rows.T, bounds / size]), target)
    if np.linalg.norm(residual) < 1e-7:
        return None
    return -residual[:-1] / residual[-1] * size


def cagrad(rows: np.ndarray, c: float = 0.5) -> np.ndarray:
    """The direction of largest common progress in the ball, by bisection over the progress."""
    norms, units = split(rows)
    mean = rows.mean(0)
    length = np.linalg.norm(mean)
    if length < 1e-12 * norms.max():
        return mean
    if not norms.all() or not far_from_stationary(rows):
        return np.full(rows.shape[1], np.nan)
    center, steps = mean / length, norms.min() / norms
    away = lambda level: least_distance(units, level * steps - units @ center)  # noqa: E731
    low, high = -1.0, 1.0
    while (x := away(high)) is not None and np.linalg.norm(x) < c:
        low, high = high, 4 * high
    while low < 0 and (x := away(low)) is not None and np.linalg.norm(x) > c:
        low, high = 4 * low, low
    for _ in range(70):
        middle = (low + high) / 2
        x = away(middle)
        low, high = (low, middle) if x is None or np.linalg.norm(x) > c else (middle, high)
    x = away(low)
    return length * (center + x * c / max(np.linalg.norm(x), 1e-300))


def pcd(rows: np.ndarray, tau: float = 0.02, eps: float = 1e-8) -> np.ndarray:
    """The first call of PCD: the nearest direction to the main task within the bounds."""
    norms, units = split(rows)
    if norms[0] == 0 or len(rows) == 1:
        return rows[0]
    scaled = norms / np.sqrt(norms**2 + eps)
    start = scaled[0] * units[0]
    others = units[1:]
    x = least_distance(others, tau * scaled[1:] - others @ start)
    if x is None:
        return rows[0]
    direction = start + x
    if max(tau * scaled[1:] - others @ start) <= 0:
        direction = start
    return direction / np.linalg.norm(direction) * norms[0]


def imtl_g(rows: np.ndarray) -> np.ndarray:
    """Least squares equal projections."""
    norms, units = split(rows)
    used = norms > 0
    if not used.any():
        return np.zeros(rows.shape[1])
    projections = np.linalg.lstsq(units[used], np.ones(used.sum()), rcond=1e-6)[0]
    coefficients = np.linalg.lstsq(units[used].T, projections, rcond=1e-6)[0]
    relative = coefficients / (norms[used] / norms[used].min())
    if abs(relative.sum()) < 1e-3 * np.abs(relative).sum():
        return np.full(rows.shape[1], np.nan)
    return projections / relative.sum() * norms[used].min()


def conflict_free(rows: np.ndarray) -> np.ndarray:
    """Equal cosines."""
    norms, units = split(rows)
    used = norms > 0
    if not used.any():
        return np.zeros(rows.shape[1])
    x = np.linalg.lstsq(units[used], np.ones(used.sum()), rcond=1e-6)[0]
    if np.linalg.norm(x) < 1e-9:
        return np.zeros_like(x)
    x = x / np.linalg.norm(x)
    return (norms[used] @ (units[used] @ x)) * x


def aligned_mtl(rows: np.ndarray) -> np.ndarray:
    """Principal components of equal length; only where float64 resolves the norms."""
    norms, units = split(rows)
    used = norms > 0
    if not used.any():
        return np.zeros(rows.shape[1])
    if norms.max() > 1e6 * norms[used].min():
        return np.full(rows.shape[1], np.nan)
    values = np.linalg.svd(units[used], compute_uv=False)
    rank = int((values > 1e-5 * values[0]).sum())
    left, values, right = np.linalg.svd(rows / norms.max(), full_matrices=False)
    even = np.ones(len(rows)) / len(rows)
    kept = slice(0, rank)
    return norms.max() * values[rank - 1] * right[kept].T @ (left[:, kept].T @ even)


def krum(rows: np.ndarray) -> np.ndarray:
    """The row nearest to its neighbours; undefined where two are as near."""
    k = len(rows)
    distances = np.linalg.norm(rows[:, None] - rows[None], axis=2)
    near = np.sort(distances, axis=1)[:, 1 : max(k - 2, 1) + 1]
    scores = near.sum(1)
    first = np.sort(scores)
    if k > 1 and first[1] - first[0] < 1e-4 * first[1]:
        return np.full(rows.shape[1], np.nan)
    return rows[scores.argmin()]


def decrement(rows: np.ndarray, weights: np.ndarray, alpha: float) -> float:
    """The residual of `(G w)^alpha w = 1` at given weights, relative to the update's length.

    The weights minimise a convex function; the Newton decrement of the unit vectors' coefficients,
    computed in float64, is that distance up to second order.
    """
    norms, units = split(rows)
    used = norms > 0
    if not used.any():
        return 0.0
    norms, units, weights = norms[used], units[used], weights[used]
    if (weights <= 0).any():
        return np.inf
    s = norms * weights
    level = np.log(norms) * (1 / alpha - 1)
    pull = np.exp(level - np.log(s) / alpha)
    slope = units @ (units.T @ s) - pull
    hessian = units @ units.T + np.diag(pull / s / alpha)
    lengths = 1 / np.sqrt(np.diag(hessian))
    scaled = hessian * lengths[:, None] * lengths[None, :]
    step = np.linalg.solve(scaled, slope * lengths)
    return float(np.sqrt(max(step @ (slope * lengths), 0)) / np.linalg.norm(units.T @ s))


UPDATES: dict[str, Update] = {
    function.__name__: function
    for function in (
        mgda,
        upgrad,
        dualproj,
        cagrad,
        pcd,
        imtl_g,
        conflict_free,
        aligned_mtl,
        krum,
    )
}
EQUATIONS = {"nash": 1.0, "fairgrad": 1.0}
