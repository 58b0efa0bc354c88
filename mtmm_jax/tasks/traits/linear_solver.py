"""Penalised linear models with a convex loss: strength sum_i loss(x_i W + b, y_i) + 1/2 |W|^2.

L-BFGS on the host. In the space of the rows (`Rotated`) the bound on the curvature, loss'' X^T X,
is diagonal, so that steps are scaled by it and some dozens suffice; a squared loss takes one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from scipy import optimize, sparse

_MOST = 200  # iterations
_TOLERANCE = 1e-5  # of the gradient, a row
_DENSE = 0.1  # share of non-zeros above which a block is dense


class Features:
    """`[N, D]` as blocks of columns, sparse ones where most values are zero.

    Args:
        blocks: `[N, D_i]` each.
    """

    def __init__(self, blocks: list[Any]) -> None:
        self.blocks = blocks

    @classmethod
    def of(cls, block: np.ndarray) -> Features:
        """Of one block, sparse where that is smaller."""
        dense = np.count_nonzero(block) > _DENSE * block.size
        return cls([block.astype(np.float32) if dense else sparse.csr_matrix(block, dtype="f4")])

    @classmethod
    def join(cls, parts: list[Features]) -> Features:
        return cls([block for part in parts for block in part.blocks])

    @classmethod
    def stack(cls, parts: list[Features]) -> Features:
        """The rows of several of one block, never dense where all of them are sparse."""
        blocks = [part.blocks[0] for part in parts]
        if all(map(sparse.issparse, blocks)):
            return cls([sparse.vstack(blocks, "csr")])
        return cls.of(np.concatenate([part.array() for part in parts]))

    @property
    def rows(self) -> int:
        return self.blocks[0].shape[0]

    @property
    def width(self) -> int:
        return sum(block.shape[1] for block in self.blocks)

    def take(self, rows: np.ndarray) -> Features:
        return Features([block[rows] for block in self.blocks])

    def __matmul__(self, kernel: np.ndarray) -> np.ndarray:
        parts = np.split(kernel, np.cumsum([b.shape[1] for b in self.blocks])[:-1])
        found = np.zeros((self.rows, kernel.shape[1]), np.float32)
        for block, part in zip(self.blocks, parts, strict=True):
            found += block @ part.astype(np.float32)
        return found

    def transposed(self, values: np.ndarray) -> np.ndarray:
        """`X^T values`."""
        return np.concatenate([block.T @ values for block in self.blocks])

    def gram(self) -> np.ndarray:
        """`X X^T` in float64."""
        found = np.zeros((self.rows, self.rows))
        for block in self.blocks:
            own = block @ block.T
            found += own.toarray() if sparse.issparse(own) else own
        return found

    def mean(self) -> np.ndarray:
        """`[D]` float32, over the rows."""
        means = [np.asarray(block.mean(0)).reshape(-1) for block in self.blocks]
        return np.concatenate(means).astype(np.float32)

    def array(self) -> np.ndarray:
        return np.concatenate(
            [b.toarray() if sparse.issparse(b) else b for b in self.blocks], axis=1
        )


class Loss(NamedTuple):
    """A convex loss of scores `[N, P]` and labels `[N, P]`.

    Attributes:
        value: `(scores, labels) -> (sum, its derivative [N, P])`.
        curvature: a bound on the second derivative.
    """

    value: Callable[[np.ndarray, np.ndarray], tuple[float, np.ndarray]]
    curvature: float

    def mean(self, scores: np.ndarray, labels: np.ndarray) -> float:
        return self.value(scores, labels)[0] / max(len(scores), 1)


def softmax_loss() -> Loss:
    """-log softmax(s)_y, y one-hot."""

    def value(scores: np.ndarray, labels: np.ndarray) -> tuple[float, np.ndarray]:
        shifted = scores - scores.max(1, keepdims=True)
        p = np.exp(shifted)
        total = p.sum(1, keepdims=True)
        loss = float((np.log(total[:, 0]) - (shifted * labels).sum(1)).sum())
        return loss, p / total - labels

    return Loss(value, 0.5)


def sigmoid_loss() -> Loss:
    """-y log s(z) - (1 - y) log s(-z), for each label."""

    def value(scores: np.ndarray, labels: np.ndarray) -> tuple[float, np.ndarray]:
        loss = float((np.logaddexp(0, scores) - labels * scores).sum())
        return loss, 1 / (1 + np.exp(-np.clip(scores, -60, 60))) - labels

    return Loss(value, 0.25)


def squared_loss() -> Loss:
    """1/2 (z - y)^2."""

    def value(scores: np.ndarray, labels: np.ndarray) -> tuple[float, np.ndarray]:
        apart = scores - labels
        return 0.5 * float(np.square(apart).sum()), apart

    return Loss(value, 1.0)


class Rotated(NamedTuple):
    """Centred features in the space of their rows, where X^T X is diagonal.

    Attributes:
        z: `[N, r]`.
        values: `[r]`, the diagonal.
        turn: `[D, r]`: `X - center = z turn^T`.
        center: `[D]`.
    """

    z: np.ndarray
    values: np.ndarray
    turn: np.ndarray
    center: np.ndarray

    @classmethod
    def of(cls, features: Features) -> Rotated:
        center, wide = features.mean(), features.width > features.rows
        if wide:  # sparse blocks stay sparse
            gram = features.gram()
            mean = gram.mean(0)
            gram = gram - mean - mean[:, None] + mean.mean()
        else:
            x = features.array() - center
            gram = (x.T @ x).astype(np.float64)
        values, vectors = np.linalg.eigh(gram)
        keep = values > 1e-6 * max(values.max(initial=0.0), 1e-30)
        values, vectors = values[keep], vectors[:, keep]
        root = np.sqrt(values)
        if wide:
            back = (vectors / root).astype(np.float32)
            z, turn = vectors * root, features.transposed(back) - np.outer(center, back.sum(0))
        else:
            z, turn = x @ vectors.astype(np.float32), vectors
        return cls(z.astype(np.float32), values, turn.astype(np.float32), center)

    def solve(
        self, loss: Loss, labels: np.ndarray, strength: float, warm: Any
    ) -> tuple[np.ndarray, np.ndarray]:
        """`W [r, P]`, `b [P]`."""
        outputs = labels.shape[1]
        scale = np.sqrt(loss.curvature * strength * self.values + 1)[:, None]
        rows = np.sqrt(loss.curvature * strength * len(labels))
        start = (np.zeros((len(scale), outputs)), np.zeros(outputs)) if warm is None else warm

        def value(flat: np.ndarray) -> tuple[float, np.ndarray]:
            w, b = flat[:-outputs].reshape(-1, outputs) / scale, flat[-outputs:] / rows
            total, slope = loss.value(self.z @ w.astype(np.float32) + b.astype(np.float32), labels)
            gradient = (strength * (self.z.T @ slope) + w) / scale
            whole = np.append(gradient.ravel(), strength * slope.sum(0) / rows)
            return strength * total + 0.5 * float(np.square(w).sum()), whole.astype(np.float64)

        flat = np.append((start[0] * scale).ravel(), start[1] * rows)
        found = _minimise(value, flat, strength * len(labels))
        return found[:-outputs].reshape(-1, outputs) / scale, found[-outputs:] / rows

    def back(self, w: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Kernel `[D, P]` and bias of features as they are."""
        kernel = self.turn @ w.astype(np.float32)
        return kernel, b - self.center @ kernel


def solve_all(
    loss: Loss,
    features: Features,
    labels: np.ndarray,
    strength: float,
    kernel: np.ndarray,
    bias: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Kernel and bias of all rows, from those of some."""
    outputs = labels.shape[1]

    def value(flat: np.ndarray) -> tuple[float, np.ndarray]:
        w, b = flat[:-outputs].reshape(-1, outputs), flat[-outputs:]
        total, slope = loss.value(features @ w + b.astype(np.float32), labels)
        gradient = strength * features.transposed(slope) + w
        whole = np.append(gradient.ravel(), strength * slope.sum(0))
        return strength * total + 0.5 * float(np.square(w).sum()), whole.astype(np.float64)

    start = np.append(kernel.ravel(), bias).astype(np.float64)
    found = _minimise(value, start, strength * len(labels))
    return found[:-outputs].reshape(-1, outputs), found[-outputs:]


def _minimise(value: Any, start: np.ndarray, rows: float) -> np.ndarray:
    def scaled(flat: np.ndarray) -> tuple[float, np.ndarray]:
        total, slope = value(flat)
        return total / rows, slope / rows

    options = {"maxiter": _MOST, "ftol": 1e-10, "gtol": _TOLERANCE / max(1, len(start)) ** 0.5}
    return optimize.minimize(scaled, start, jac=True, method="L-BFGS-B", options=options).x
