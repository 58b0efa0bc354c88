"""One label out of several annotators' votes: by majority, or by how far each can be trusted."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from mtmm_jax.registry import ConfigError, choose

UNCERTAINTIES = ("entropy", "margin")


@dataclasses.dataclass(frozen=True)
class Consensus:
    """Consensus of the votes `[N, A]` of A annotators on N items.

    Attributes:
        labels: `[N]` the likeliest class, -1 where nobody said anything.
        posterior: `[N, C]` the probability of each class; the `prior` where nobody said anything.
        prior: `[C]` how frequent the classes are.
        confusion: `[A, C, C]` what each annotator says: rows are the true class and sum to one.
        history: the objective after each iteration, the log likelihood of the votes plus the log
            prior that `smoothing` is; it never falls. Empty for a majority.
        ties: `[N]` bool: whether several classes were level with the first.
    """

    labels: np.ndarray
    posterior: np.ndarray
    prior: np.ndarray
    confusion: np.ndarray
    history: tuple[float, ...]
    ties: np.ndarray

    @property
    def reliability(self) -> np.ndarray:
        """`[A]` the probability that an annotator votes for the true class of an item."""
        return np.einsum("c,acc->a", self.prior, self.confusion)

    def uncertainty(self, kind: str = "entropy") -> np.ndarray:
        """`[N]` in 0..1: entropy over log C, or one minus the margin of the first to the second."""
        choose(kind, UNCERTAINTIES, "uncertainty", "kind")
        p = self.posterior
        if p.shape[1] == 1:
            return np.zeros(len(p))
        if kind == "entropy":
            return -(p * np.log(np.where(p > 0, p, 1.0))).sum(1) / np.log(p.shape[1])
        second, first = np.partition(p, -2, axis=1)[:, -2:].T
        return 1.0 - (first - second)


def majority(votes: np.ndarray, classes: int | None = None) -> Consensus:
    """The class with most votes; of several, the one with most votes overall, then the first.

    Args:
        votes: `[N, A]` int, -1 where an annotator did not say.
        classes: how many there are; one more than the largest vote by default.
    """
    votes, classes = _checked(votes, classes)
    counts = _counts(votes, classes)
    prior = counts.sum(0) / counts.sum()
    total = counts.sum(1, keepdims=True)
    posterior = np.where(total > 0, counts / np.maximum(total, 1), prior)
    level = (counts == counts.max(1, keepdims=True)) & (total > 0)
    labels = np.where(level, counts.sum(0), -1).argmax(1)
    confusion = _confusion(_said(votes, classes), posterior, share=0.0)
    return Consensus(
        labels=np.where(total[:, 0] > 0, labels, -1),
        posterior=posterior,
        prior=prior,
        confusion=confusion.swapaxes(1, 2),
        history=(),
        ties=level.sum(1) > 1,
    )


def dawid_skene(
    votes: np.ndarray,
    classes: int | None = None,
    *,
    smoothing: float = 1.0,
    iterations: int = 500,
    tolerance: float = 1e-8,
) -> Consensus:
    """Expectation maximisation over the true classes and each annotator's confusion matrix.

    E: q_nk ~ p_k prod_a m_a[k, v_na]. M: m_a[k, l] ~ s / C + sum_n q_nk [v_na = l], and p alike.
    It begins from the shares of the votes, draws nothing, and costs O(C) for each vote and
    iteration. Better than a majority where annotators differ in reliability and have said enough
    to be known by; with a handful of votes each it is not.

    Paper: Dawid and Skene, Applied Statistics 28 (1979), with a Dirichlet prior on the rows.

    Args:
        votes: `[N, A]` int, -1 where an annotator did not say.
        classes: how many there are; one more than the largest vote by default.
        smoothing: s, the imagined votes for each annotator and true class, spread evenly over what
            was said; 0 is maximum likelihood.
        iterations: at most.
        tolerance: of the gain in the objective for each vote, below which it ends.
    """
    votes, classes = _checked(votes, classes)
    if not smoothing >= 0 or iterations < 1 or not tolerance >= 0:
        raise ConfigError(
            f"dawid_skene: smoothing {smoothing} and tolerance {tolerance} must be 0 or more, "
            f"iterations {iterations} 1 or more"
        )
    counts = _counts(votes, classes)
    heard = counts.sum(1) > 0
    said = _said(votes[heard], classes)
    share = smoothing / classes
    q = counts[heard] / counts[heard].sum(1, keepdims=True)
    history: list[float] = []
    for _ in range(iterations):
        prior = _normal(share + q.sum(0))
        confusion = _confusion(said, q, share)
        log_p = _log(prior) + said @ _log(confusion).reshape(-1, classes)
        top = log_p.max(1, keepdims=True)
        evidence = top + np.log(np.exp(log_p - top).sum(1, keepdims=True))
        q = np.exp(log_p - evidence)
        penalty = share * (_log(prior).sum() + _log(confusion).sum()) if share else 0.0
        history.append(float(evidence.sum() + penalty))
        if len(history) > 1 and history[-1] - history[-2] <= tolerance * said.nnz:
            break
    posterior = np.tile(prior, (len(votes), 1))
    posterior[heard] = q
    level = np.isclose(posterior, posterior.max(1, keepdims=True), rtol=1e-9, atol=0)
    return Consensus(
        labels=np.where(heard, level.argmax(1), -1),
        posterior=posterior,
        prior=prior,
        confusion=confusion.swapaxes(1, 2),
        history=tuple(history),
        ties=heard & (level.sum(1) > 1),
    )


METHODS = {"majority": majority, "dawid_skene": dawid_skene}


def _checked(votes: np.ndarray, classes: int | None) -> tuple[np.ndarray, int]:
    votes = np.asarray(votes)
    if votes.ndim != 2 or not np.issubdtype(votes.dtype, np.integer):
        raise ConfigError(
            f"votes: {votes.dtype}{list(votes.shape)}; needs whole numbers [items, annotators]"
        )
    if votes.min(initial=-1) < -1 or (votes == -1).all():
        raise ConfigError("votes: needs classes from 0 upwards, -1 for none, and at least one vote")
    most = int(votes.max()) + 1
    if classes is not None and classes < most:
        raise ConfigError(f"votes: there is a class {most - 1}, and only {classes} classes")
    return votes.astype(np.int64), most if classes is None else classes


def _counts(votes: np.ndarray, classes: int) -> np.ndarray:
    """`[N, C]` the number of votes for each class."""
    item, annotator = np.nonzero(votes >= 0)
    counts = np.bincount(item * classes + votes[item, annotator], minlength=len(votes) * classes)
    return counts.reshape(len(votes), classes).astype(np.float64)


def _said(votes: np.ndarray, classes: int) -> Any:
    """Sparse `[N, A * C]`: a one for each vote."""
    from scipy import sparse  # slow to import, and only this needs it

    item, annotator = np.nonzero(votes >= 0)
    at = annotator * classes + votes[item, annotator]
    shape = (len(votes), votes.shape[1] * classes)
    return sparse.csr_array((np.ones(len(item)), (item, at)), shape=shape)


def _confusion(counts: Any, q: np.ndarray, share: float) -> np.ndarray:
    """`[A, vote, true]`, normalised over votes."""
    classes = q.shape[1]
    return _normal(share + (counts.T @ q).reshape(-1, classes, classes), axis=1)


def _normal(x: np.ndarray, axis: int = 0) -> np.ndarray:
    """Sums to one along an axis; uniform where there is nothing."""
    total = x.sum(axis, keepdims=True)
    return np.where(total > 0, x / np.where(total > 0, total, 1.0), 1.0 / x.shape[axis])


def _log(p: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log(p)
