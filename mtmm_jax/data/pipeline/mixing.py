"""Mixing: the shares of several parts of the data in the training batches.

Shares are kept exactly, not on average: after any number of rows each part has had its due,
rounded by Webster's method, which never takes a row back as the total grows. What a step holds
depends on its number alone, so a run resumes anywhere.
"""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Callable, Sequence
from typing import Annotated, Literal

import numpy as np

from mtmm_jax.ranges import NonNegative, Positive, PositiveShare, Range
from mtmm_jax.registry import ConfigError, build, check

Per = Literal["batch", "step"]
"""Whether a batch mixes the sources, or each step holds one of them."""


def webster(weights: Sequence[float], total: int) -> np.ndarray:
    """`[S]` counts that sum to `total`, in proportion to the weights (which sum to one)."""
    weights = np.asarray(weights, np.float64)
    size = len(weights)
    counts = np.maximum(np.floor(weights * total).astype(np.int64) - size, 0)
    queue = [(-w / (n + 0.5), i) for i, (w, n) in enumerate(zip(weights, counts, strict=True))]
    heapq.heapify(queue)
    for _ in range(total - int(counts.sum())):
        _, i = queue[0]
        counts[i] += 1
        heapq.heapreplace(queue, (-weights[i] / (counts[i] + 0.5), i))
    return counts


@dataclasses.dataclass(frozen=True)
class Mixing:
    """Shares of the parts.

    Attributes:
        weights: sizes of the parts -> their shares, any positive scale.
        per: "batch" if each batch holds rows of all parts, "step" if each holds those of one.
        observe: `(shares, scores [S]) -> shares` after a validation, or None if they stay. Scores
            are the mean headline of the tasks of each part, larger is better, NaN where unknown.
    """

    weights: Callable[[np.ndarray], np.ndarray]
    per: Per = "batch"
    observe: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None

    def shares(self, sizes: Sequence[int]) -> np.ndarray:
        """Normalised."""
        found = np.asarray(self.weights(np.asarray(sizes, np.float64)), np.float64)
        return found / found.sum()


@dataclasses.dataclass(frozen=True)
class Plan:
    """The rows of each part that make up each step, from `step` on.

    Attributes:
        shares: of the parts.
        per: as in `Mixing`.
        step: where these shares began to hold.
        taken: `[S]` rows of each part in the steps before.
    """

    shares: tuple[float, ...]
    per: str
    step: int = 0
    taken: tuple[int, ...] = ()

    def before(self, step: int, batch_size: int) -> np.ndarray:
        """`[S]` rows of each part in all steps before `step`."""
        start = np.asarray(self.taken or (0,) * len(self.shares), np.int64)
        if self.per == "step":
            return start + batch_size * webster(self.shares, step - self.step)
        return start + webster(self.shares, batch_size * (step - self.step))

    def rows(self, step: int, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
        """`(part [B], position [B])` of a step's rows, the parts evenly spread over the batch."""
        start, stop = self.before(step, batch_size), self.before(step + 1, batch_size)
        part = np.repeat(np.arange(len(start)), stop - start)
        position = np.concatenate([np.arange(a, b) for a, b in zip(start, stop, strict=True)])
        due = (position - start[part] + 0.5) / (stop - start)[part]
        order = np.argsort(due, kind="stable")
        return part[order], position[order]

    def change(self, shares: np.ndarray, step: int, batch_size: int) -> Plan:
        """Other shares from `step` on."""
        taken = tuple(int(n) for n in self.before(step, batch_size))
        return Plan(tuple(float(x) for x in shares), self.per, step, taken)


def fixed(weights: Sequence[Positive], *, per: Per = "batch", where: str = "data.mixing") -> Mixing:
    """The given weights, in the order of the parts."""
    given = np.asarray(check(weights, Sequence[Positive], f"{where}.weights"), np.float64)

    def of(sizes: np.ndarray) -> np.ndarray:
        if len(sizes) != len(given):
            raise ConfigError(f"{where}.weights: {len(given)} of them for {len(sizes)} sources")
        return given

    return Mixing(of, per)


def proportional(*, per: Per = "batch", where: str = "data.mixing") -> Mixing:
    """By size: every example is as likely as every other."""
    return Mixing(lambda sizes: sizes, per)


def temperature(
    temperature: Annotated[float, Range(1, 1e6)] = 2.0,
    *,
    per: Per = "batch",
    where: str = "data.mixing",
) -> Mixing:
    """By `size^(1/temperature)`: 1 is proportional, large values are equal shares."""
    return Mixing(lambda sizes: (sizes / sizes.max()) ** (1 / temperature), per)


def round_robin() -> Mixing:
    """A whole step for each source in turn."""
    return Mixing(np.ones_like, "step")


def accumulate() -> Mixing:
    """Every step holds as many rows of each source: gradients of all accumulate in one update."""
    return Mixing(np.ones_like)


def performance(
    gamma: NonNegative = 1.0,
    floor: PositiveShare = 0.05,
    *,
    per: Per = "batch",
    where: str = "data.mixing",
) -> Mixing:
    """More of what goes badly: shares `~ -(1 - k)^gamma log k`, k the headline at validation.

    Equal shares until the first validation. A headline that is no score in 0..1 counts as its
    nearest end; no share falls below `floor` of the equal one.

    Paper: the focal priority of Guo et al., ECCV 2018 (Dynamic Task Prioritization).
    """

    def observe(shares: np.ndarray, scores: np.ndarray) -> np.ndarray:
        known = np.isfinite(scores)
        if not known.any():
            return shares
        k = np.clip(np.where(known, scores, scores[known].mean()), 0.01, 0.99)
        wanted = -((1 - k) ** gamma) * np.log(k)
        wanted = wanted / wanted.sum()
        return floor / len(k) + (1 - floor) * wanted

    return Mixing(np.ones_like, per, observe)


MIXINGS = {
    "fixed": fixed,
    "proportional": proportional,
    "temperature": temperature,
    "round_robin": round_robin,
    "accumulate": accumulate,
    "performance": performance,
}


def mixing(spec: object, where: str = "data.mixing") -> Mixing:
    """An entry of `MIXINGS` by name or section."""
    return build(MIXINGS, spec, where=where)
