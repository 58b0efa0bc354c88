"""95 % intervals of metrics, from the sums, counts or rows that a metric's state holds.

    wilson(hits, count)                  a share of examples, such as an accuracy
    of_mean(total, squares, count)       a mean over examples, from sums of values and squares
    of_ratio(above, below)               a ratio of two sums over examples, such as an error rate
    of_rows(statistic, count)            anything of rows: bootstrap by example
    of_counts(statistic, counts)         anything of a table of counts: bootstrap by example

They say how much a metric would differ on other examples of the same kind, for the model as it is;
not how much it differs between seeds of training. Where there is none, the reason stands in its
place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from scipy.special import ndtri, stdtrit

LEVEL = 0.95
RESAMPLES = 400
MOST_VALUES = 50_000  # of which a bootstrap is worth its time: a few seconds
FEW = "fewer than two examples"
_Z = float(ndtri(0.5 + LEVEL / 2))


class Interval(NamedTuple):
    """From `low` to `high`, and the method by which it was found."""

    low: float
    high: float
    method: str


def wilson(hits: float, count: float) -> Interval | str:
    """(p + z^2/2n +- z sqrt(p (1 - p) / n + z^2/4n^2)) / (1 + z^2/n), p = hits / n (Wilson 1927).

    Unlike p +- z sd it stays within 0..1, and is no point where all are right.
    """
    if not count > 0:
        return "no example"
    p, n = min(max(hits / count, 0.0), 1.0), float(count)
    middle = p + _Z**2 / (2 * n)
    half = _Z * (p * (1 - p) / n + _Z**2 / (4 * n**2)) ** 0.5
    scale = 1 + _Z**2 / n
    low, high = max((middle - half) / scale, 0.0), min((middle + half) / scale, 1.0)
    return Interval(float(low), float(high), "wilson")


def of_mean(
    total: float, squares: float, count: float, low: float = -np.inf, high: float = np.inf
) -> Interval | str:
    """m +- t sd / sqrt(n), t of n - 1 degrees of freedom, within `low`..`high`.

    Args:
        total, squares: sums of the values and of their squares.
        count: of the values.
        low, high: what the mean cannot be beyond.
    """
    if not count > 1:
        return FEW
    mean = total / count
    variance = max(squares / count - mean**2, 0.0) * count / (count - 1)
    return _around(mean, (variance / count) ** 0.5, count, low, high)


def of_skewed_mean(total: float, squares: float, count: float) -> Interval | str:
    """m exp(+- t sd / (m sqrt(n))): `of_mean` of the logarithm, for values from 0 upwards with a
    long tail, such as squared errors. Of normal errors it holds the truth 93 times of 100 with 60
    examples, where `of_mean` does 92; of a skewed distribution 90, and 87."""
    found = of_mean(total, squares, count)
    if isinstance(found, str) or total == 0:
        return found
    mean = total / count
    with np.errstate(over="ignore"):
        factor = float(np.exp((found.high - mean) / mean))
    return Interval(mean / factor, mean * factor, "normal") if np.isfinite(factor) else FEW


def of_ratio(above: np.ndarray, below: np.ndarray, low: float = 0.0) -> Interval | str:
    """r +- t sd(above - r below) / (mean(below) sqrt(n)), r = sum(above) / sum(below).

    Args:
        above, below: `[N]`, a number of each example.
        low: what the ratio cannot be below.
    """
    count, total = len(above), float(np.sum(below))
    if count < 2 or not total > 0:
        return FEW
    ratio = float(np.sum(above)) / total
    spread = np.std(above - ratio * below, ddof=1) / (total / count)
    return _around(ratio, float(spread) / count**0.5, count, low, np.inf)


def _around(middle: float, error: float, count: float, low: float, high: float) -> Interval | str:
    half = float(stdtrit(count - 1, 0.5 + LEVEL / 2)) * error
    if not np.isfinite(middle + half):
        return "not finite"
    return Interval(float(max(middle - half, low)), float(min(middle + half, high)), "normal")


def transformed(found: Interval | str, change: Callable[[float], float]) -> Interval | str:
    """The interval of a rising function of a metric."""
    if isinstance(found, str):
        return found
    return Interval(change(found.low), change(found.high), found.method)


def of_r2(s: Mapping[str, float]) -> Interval | str:
    """Of 1 - sum e^2 / sum c, c = (y - mean y)^2, by its influence on each example:
    -(e^2 - (1 - R2) c) / mean c has the variance of R2 times n, to first order.

    Args:
        s: sums over the examples: `count`, `y`, `yy`, `yyy`, `yyyy`, `squared` (e^2), `fourth`
            (e^4), `squared_y` (e^2 y) and `squared_yy`.
    """
    n = s["count"]
    if not n > 2:
        return "fewer than three examples"
    m = s["y"] / n
    spread = s["yy"] - n * m**2
    if not spread > 1e-6 * max(s["yy"], 1.0):
        return "the labels do not vary"
    rest = s["squared"] / spread
    crossed = s["squared_yy"] - 2 * m * s["squared_y"] + m**2 * s["squared"]
    cc = s["yyyy"] - 4 * m * s["yyy"] + 6 * m**2 * s["yy"] - 3 * n * m**4
    variance = max(s["fourth"] - 2 * rest * crossed + rest**2 * cc, 0.0) / spread**2
    return _around(1 - rest, variance**0.5 * (n / (n - 1)) ** 0.5, n, -np.inf, 1.0)


def of_rows(
    statistic: Callable[[np.ndarray], Mapping[str, float]], count: int, width: int = 1
) -> dict[str, Interval] | str:
    """Percentiles of a statistic over examples drawn with replacement, always the same ones.

    Args:
        statistic: indices of examples, some of them several times -> `{metric: value}`.
        count: of the examples.
        width: how many values of an example the statistic reads.
    """
    if count < 2:
        return FEW
    if count * width > MOST_VALUES:
        return f"more than {MOST_VALUES:,} values to resample"
    draw = np.random.default_rng(0)
    return _percentiles([statistic(draw.integers(0, count, count)) for _ in range(RESAMPLES)])


def of_counts(
    statistic: Callable[[np.ndarray], Mapping[str, float]], counts: np.ndarray
) -> dict[str, Interval] | str:
    """`of_rows` of a statistic that depends on a table of counts of examples alone.

    Args:
        statistic: a table of the same shape -> `{metric: value}`.
        counts: how many examples fall into each cell.
    """
    counts = np.asarray(counts, np.float64)
    count = round(counts.sum())
    if count < 2:
        return FEW
    cells = np.flatnonzero(counts)
    shares = counts.ravel()[cells] / counts.sum()
    tables = np.random.default_rng(0).multinomial(count, shares, RESAMPLES)
    found = []
    for table in tables:
        whole = np.zeros(counts.size)
        whole[cells] = table
        found.append(statistic(whole.reshape(counts.shape)))
    return _percentiles(found)


def _percentiles(values: list[Mapping[str, float]]) -> dict[str, Interval]:
    """Resamples in which a metric is not a number do not count for it."""
    found, tail = {}, 50 * (1 - LEVEL)
    for name in values[0]:
        own = np.array([value[name] for value in values], np.float64)
        own = own[np.isfinite(own)]
        if len(own) >= RESAMPLES / 2:
            low, high = np.percentile(own, [tail, 100 - tail])
            found[name] = Interval(float(low), float(high), "bootstrap")
    return found


def only(found: dict[str, Interval] | str, *names: str) -> dict[str, Any]:
    """Some metrics of a bootstrap, or the reason for each of them."""
    if isinstance(found, str):
        return dict.fromkeys(names, found)
    return {name: found.get(name, "not a number in most resamples") for name in names}
