"""The picture of the balancing benchmark: time and memory of each engine against the tasks."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

COLOURS = {
    "losses": "tab:green",
    "representation": "tab:blue",
    "gramian": "tab:purple",
    "full": "tab:red",
    "torch equal": "tab:gray",
    "torchjd autogram": "tab:orange",
    "torchjd autojac": "tab:brown",
}
Lines = dict[str, dict[int, list[float]]]


def plot(rows: Sequence[dict], path: str) -> None:
    """A column per trunk, time above memory; a line is the median over an engine's methods."""
    import matplotlib.pyplot as plt

    trunks = sorted({row["trunk"] for row in rows} - {"solver"})
    width = 7 * max(len(trunks), 1)
    figure, axes = plt.subplots(2, max(len(trunks), 1), squeeze=False, figsize=(width, 9))
    for column, trunk in zip(axes.T, trunks, strict=False):
        chosen = [row for row in rows if row["trunk"] == trunk]
        _panel(column[0], _lines(chosen, "relative_to_equal"))
        _panel(column[1], _lines(chosen, "extra_mb"))
        column[0].set(yscale="log", title=trunk, ylabel="step time / our equal-weight step")
        column[1].set_yscale("symlog", linthresh=1)
        column[1].set_ylim(bottom=min(-0.3, *(row["extra_mb"] for row in chosen)))
        column[1].set(ylabel="memory beyond the equal-weight step, MB", xlabel="tasks")
        for axis in column:
            axis.yaxis.set_major_formatter("{x:g}")
            _label(axis)
    figure.suptitle("Line: median over the methods of an engine; band: all of them; dashed: peers")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _lines(rows: Sequence[dict], key: str) -> Lines:
    lines: Lines = {}
    for row in rows:
        equal = row["method"] == "equal"
        if key == "extra_mb" and equal:
            continue  # zero by definition
        peer = ("torch " if equal else f"{row['peer']} ") if row["peer"] else ""
        points = lines.setdefault(peer + row["engine"], {})
        points.setdefault(row["tasks"], []).append(row[key])
    return lines


def _panel(axis: Any, lines: Lines) -> None:
    for name, points in sorted(lines.items()):
        tasks = sorted(points)
        colour, style = COLOURS.get(name), "--" if name.startswith("torch") else "-"
        middle = [statistics.median(points[k]) for k in tasks]
        axis.plot(tasks, middle, style, color=colour, lw=3, marker="o", label=name)
        low, high = [min(points[k]) for k in tasks], [max(points[k]) for k in tasks]
        axis.fill_between(tasks, low, high, color=colour, alpha=0.12, lw=0)
    every = sorted({k for points in lines.values() for k in points})
    axis.set_xscale("log")
    axis.set_xticks(every, [str(k) for k in every])
    axis.minorticks_off()
    axis.grid(alpha=0.3)


def _label(axis: Any) -> None:
    """Names next to the lines' last points, moved apart where they would touch."""
    ends = sorted(axis.lines, key=lambda line: line.get_ydata()[-1])
    height = axis.transAxes.inverted().transform
    lowest = -1.0
    for line in ends:
        point = axis.transData.transform((line.get_xdata()[-1], line.get_ydata()[-1]))
        lowest = max(float(height(point)[1]), lowest + 0.05)
        axis.annotate(
            line.get_label(),
            (1.01, lowest),
            xycoords="axes fraction",
            color=line.get_color(),
            va="center",
        )
