"""Entries of a benchmark side by side: a bar each, its seeds as dots."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np


def panels(count: int, entries: int) -> tuple[Any, Sequence[Any]]:
    """A figure for the screenless, and its axes side by side.

    Args:
        count: of the axes.
        entries: the most that one of them holds.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    size = (1 + 6 * count, 0.6 + 0.24 * entries)
    figure, axes = plt.subplots(1, count, figsize=size, layout="constrained", squeeze=False)
    return figure, axes[0]


def bars(axes: Any, values: Mapping[str, Sequence[float]], marked: Collection[str]) -> None:
    """The best on top, those that are marked in orange."""
    names = sorted(values, key=lambda name: np.mean(values[name]))
    for y, name in enumerate(names):
        colour = "tab:orange" if name in marked else "tab:blue"
        axes.barh(y, np.mean(values[name]), color=colour, alpha=0.6)
        axes.plot(values[name], [y] * len(values[name]), ".", color="black", markersize=4)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_ylim(-0.7, len(names) - 0.3)


def save(figure: Any, path: str | Path) -> None:
    """Also into a folder that is not there yet."""
    from matplotlib import pyplot as plt

    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
