"""The gain of a second task over the share of labels: its runs, and their plot."""

from __future__ import annotations

import numpy as np

from mtmm_jax.benchmarks.recipes.runs import TrainingRun, key_of
from mtmm_jax.benchmarks.tables import bar_charts
from mtmm_jax.benchmarks.tables.result_table import Board

CURVE_SHARES = (2, 5, 10, 25, 100)
OWN_SHARE = 10  # that of the config few_labels
NO_PAIRS = "tasks.retrieval=None"


def _at(share: int) -> tuple[TrainingRun, TrainingRun]:
    hide = () if share == OWN_SHARE else (f"data.hide={{'category': {share / 100}}}",)
    alone = (*hide, NO_PAIRS)
    return TrainingRun("few_labels", hide), TrainingRun("few_labels", alone)


CURVE: dict[int, tuple[TrainingRun, TrainingRun]] = {share: _at(share) for share in CURVE_SHARES}
"""Percent of the labels -> category next to retrieval, and category alone."""


def curve(board: Board, path: str, steps: int | None = None) -> None:
    """A picture: the category's test accuracy over the share of its labels, of several tasks and
    of one; bars are a standard deviation over the seeds."""
    figure, (axes,) = bar_charts.panels(1, 12)
    for i, label in enumerate(("category next to retrieval", "category alone")):
        points = []
        for share, runs in CURVE.items():
            found = board.find(**key_of(runs[i], steps))
            if values := [row["test"]["category"] for row in found]:
                points.append((share, np.mean(values), np.std(values)))
        if points:
            x, y, error = np.array(points).T
            axes.errorbar(x, y, error, marker="o", capsize=3, label=label)
    axes.set_xscale("log")
    axes.set_xticks(CURVE_SHARES, [f"{share}%" for share in CURVE_SHARES], minor=False)
    axes.minorticks_off()
    axes.set_xlabel("emoji whose category is known in training")
    axes.set_ylabel("category accuracy, test")
    if axes.get_legend_handles_labels()[0]:
        axes.legend()
    bar_charts.save(figure, path)
