"""Independent NumPy references: plain loops and SciPy-free solvers, float64, no shared code."""

from __future__ import annotations

import numpy as np


def nonnegative_qp(matrix: np.ndarray, linear: np.ndarray) -> np.ndarray:
    """Lawson & Hanson's active set for `min_{z>=0} 1/2 z'Mz + q'z`."""
    size = len(linear)
    z, passive = np.zeros(size), np.zeros(size, bool)
    for _ in range(50 * size):
        slope = -(matrix @ z + linear)
        slope[passive] = -np.inf
        if slope.max() <= 1e-13 * max(1, np.abs(linear).max()):
            return z
        passive[slope.argmax()] = True
        while True:
            trial = np.zeros(size)
            index = np.flatnonzero(passive)
            trial[index] = np.linalg.lstsq(
                matrix[np.ix_(index, index)], -linear[index], rcond=1e-14
            )[0]
            if (trial[index] > 0).all():
                z = trial
                break
            bad = index[trial[index] <= 0]
            step = np.min(z[bad] / np.maximum(z[bad] - trial[bad], 1e-300))
            z = z + step * (trial - z)
            passive &= z > 1e-15
    return z


def upgrad(gramian: np.ndarray, reg: float) -> np.ndarray:
    k = len(gramian)
    g = gramian / np.trace(gramian) + reg * np.eye(k)
    total = np.zeros(k)
    for i in range(k):
        u = np.eye(k)[i] / k
        total += u + nonnegative_qp(g, g @ u)
    return total


def dualproj(gramian: np.ndarray, reg: float) -> np.ndarray:
    k = len(gramian)
    g = gramian / np.trace(gramian) + reg * np.eye(k)
    u = np.ones(k) / k
    return u + nonnegative_qp(g, g @ u)


def pcgrad(jacobian: np.ndarray, orders: np.ndarray) -> np.ndarray:
    total = np.zeros(jacobian.shape[1])
    for i, order in enumerate(orders):
        c = jacobian[i].copy()
        for j in order:
            along = jacobian[j] @ c
            if j != i and along < 0:
                c -= along / (jacobian[j] @ jacobian[j]) * jacobian[j]
        total += c
    return total


def gradvac(
    jacobian: np.ndarray, orders: np.ndarray, rho: np.ndarray, beta: float
) -> tuple[np.ndarray, np.ndarray]:
    total, rho = np.zeros(jacobian.shape[1]), rho.copy()
    for i, order in enumerate(orders):
        c = jacobian[i].copy()
        for j in order:
            if j == i:
                continue
            g = jacobian[j]
            phi = c @ g / np.linalg.norm(c) / np.linalg.norm(g)
            r = rho[i, j]
            if phi < r:
                root = np.sqrt(1 - r**2)
                c = c + g * np.linalg.norm(c) * (r * np.sqrt(1 - phi**2) - phi * root) / (
                    np.linalg.norm(g) * root
                )
            rho[i, j] = (1 - beta) * r + beta * phi
        total += c
    return total, rho


def imtl_g(gramian: np.ndarray) -> np.ndarray:
    x = np.linalg.pinv(gramian) @ np.sqrt(np.diag(gramian))
    return x / x.sum()


def aligned(gramian: np.ndarray, scale: str) -> np.ndarray:
    values, vectors = np.linalg.eigh(gramian)
    kept = values > values[-1] * len(values) * 2.3e-16
    values, vectors = values[kept], vectors[:, kept]
    level = {
        "min": values[0],
        "median": values[(len(values) - 1) // 2],
        "rmse": values.mean(),
    }[scale]
    return (
        np.sqrt(level)
        * vectors
        @ np.diag(values**-0.5)
        @ vectors.T
        @ np.ones(len(gramian))
        / len(gramian)
    )


def conflict_free(jacobian: np.ndarray) -> np.ndarray:
    units = jacobian / np.linalg.norm(jacobian, axis=1, keepdims=True)
    x = np.linalg.pinv(units) @ np.ones(len(units))
    x = x / np.linalg.norm(x)
    return (jacobian @ x).sum() * x


def krum(jacobian: np.ndarray, faulty: int, selected: int) -> np.ndarray:
    k = len(jacobian)
    distances = np.linalg.norm(jacobian[:, None] - jacobian[None], axis=2)
    scores = [
        np.sort(np.delete(row, i))[: max(k - faulty - 2, 1)].sum()
        for i, row in enumerate(distances)
    ]
    w = np.zeros(k)
    w[np.argsort(scores)[:selected]] = 1 / selected
    return w


def trimmed_mean(jacobian: np.ndarray, trim: int) -> np.ndarray:
    trim = min(trim, (len(jacobian) - 1) // 2)
    ordered = np.sort(jacobian, axis=0)
    return ordered[trim : len(jacobian) - trim].mean(0)


def matrices(k: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Families on which the properties must hold."""
    rng = np.random.default_rng(seed + k)
    wide = rng.normal(size=(k, 3 * k + 5))
    conflicting = rng.normal(size=(k, k + 2))
    aligned_ = rng.normal(size=(k, 3 * k + 5)) + 1.5
    return {"wide": wide, "conflicting": conflicting, "aligned": aligned_}
