"""Figures of a run, as matplotlib figures. Nothing here reads files."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib import ticker
from matplotlib.figure import Figure

Records = Sequence[Mapping[str, Any]]
FEW_CLASSES = 20  # whose confusion has its numbers
_LONGEST = 20  # letters of a name at an axis


def _cut(names: Sequence[Any]) -> list[str]:
    """Names that leave room for the picture that they stand at."""
    words = map(str, names)
    return [word if len(word) <= _LONGEST else f"{word[: _LONGEST - 1]}…" for word in words]


def learning_curves(records: Records, headlines: Mapping[str, str]) -> Figure:
    """A panel a task: the training loss, and the validation headline on a second axis."""
    figure, axes = plt.subplots(
        1, len(headlines), figsize=(3.6 * len(headlines), 3), squeeze=False, layout="constrained"
    )
    train = [r for r in records if r["split"] == "train"]
    checked = [r for r in records if r["split"] == "validation"]
    for axis, (task, headline) in zip(axes[0], headlines.items(), strict=True):
        steps = [r["step"] for r in train]
        losses = np.array([r["loss"].get(task, np.nan) for r in train], float)
        axis.plot(steps, losses, color="0.8", linewidth=1)
        axis.plot(steps, _smooth(losses), color="tab:blue", label="training loss")
        axis.set_title(task)
        axis.set_xlabel("step")
        axis.set_ylabel("training loss", color="tab:blue")
        other = axis.twinx()
        values = [r.get(task, {}).get(headline, np.nan) for r in checked]
        other.plot([r["step"] for r in checked], values, "o-", color="tab:orange", markersize=3)
        other.set_ylabel(f"validation {headline}", color="tab:orange", fontsize=8)
    return figure


def _smooth(values: np.ndarray, share: float = 0.05) -> np.ndarray:
    """A centred moving average over a share of the curve, NaN left out."""
    if not len(values):
        return values
    width = max(1, int(len(values) * share) | 1)
    known = np.isfinite(values).astype(float)
    filled = np.where(known > 0, values, 0.0)
    window = np.ones(width)
    total = np.convolve(filled, window, "same")
    count = np.convolve(known, window, "same")
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def task_weights(records: Records, tasks: Sequence[str]) -> Figure:
    """The weight that balancing gave each task, over time."""
    figure, axis = plt.subplots(figsize=(7, 3), layout="constrained")
    train = [r for r in records if r["split"] == "train"]
    for task in tasks:
        axis.plot([r["step"] for r in train], [r["weight"][task] for r in train], label=task)
    axis.set_xlabel("step")
    axis.set_ylabel("weight")
    axis.legend(frameon=False, ncols=min(4, len(tasks)))
    return figure


def gradient_conflicts(records: Records) -> Figure:
    """Mean cosines between the tasks' gradients next to conflicts, norms and balance over time.

    For the train records of gradient methods, which have `cosines`; each of them counts the same.
    """
    tasks = records[0]["cosines"]["tasks"]
    few = len(tasks) <= 12
    side = 2.2 + 0.45 * len(tasks) if few else 2.4 + 0.13 * len(tasks)
    figure = plt.figure(figsize=(side + 6, max(side, 5)), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(side, 6))
    cosines = _known_mean(np.array([r["cosines"]["mean"] for r in records], float))
    np.fill_diagonal(cosines, np.nan)  # a task agrees with itself: no news
    _heat_map(left.subplots(), cosines, tasks, numbers=few)
    _conflict_curves(right.subplots(3, sharex=True), records, tasks)
    return figure


def _known_mean(values: np.ndarray) -> np.ndarray:
    """Over the first axis, NaN left out; NaN where nothing else is."""
    known = np.isfinite(values)
    total = np.where(known, values, 0.0).sum(0)
    return np.where(known.any(0), total / np.maximum(known.sum(0), 1), np.nan)


def _heat_map(axis: Any, cosines: np.ndarray, tasks: Sequence[str], numbers: bool) -> None:
    colours = plt.get_cmap("RdBu").with_extremes(bad="0.9")
    picture = axis.imshow(cosines, cmap=colours, vmin=-1, vmax=1)
    size = 9 if numbers else 5
    axis.set_xticks(range(len(tasks)), _cut(tasks), rotation=90, fontsize=size)
    axis.set_yticks(range(len(tasks)), _cut(tasks), fontsize=size)
    bar = axis.figure.colorbar(picture, ax=axis, location="top", shrink=0.8)
    bar.set_ticks([-1, 0, 1], labels=["\u22121: opposed", "0", "1: agreed"])
    bar.set_label("mean cosine between gradients")
    if numbers:
        for row, column in zip(*np.nonzero(np.isfinite(cosines)), strict=True):
            value = round(cosines[row, column], 2) + 0.0  # no minus before a zero
            ink = "white" if abs(value) > 0.6 else "black"
            shown = f"{value:.2f}".replace("-", "\u2212")
            axis.text(column, row, shown, ha="center", va="center", color=ink, fontsize=8)


def _conflict_curves(axes: Sequence[Any], records: Records, tasks: Sequence[str]) -> None:
    steps = [r["step"] for r in records]

    def draw(axis: Any, values: Sequence[float], colour: Any) -> None:
        raw = np.array(values, float)
        axis.plot(steps, raw, color=colour, alpha=0.25, linewidth=1)
        axis.plot(steps, _smooth(raw), color=colour)

    rate, norms, balance = axes
    draw(rate, [r["conflict_rate"] for r in records], "tab:red")
    rate.set(ylabel="share of pairs\nin conflict", ylim=(-0.03, 1.03))
    colours = plt.get_cmap("tab10" if len(tasks) <= 10 else "turbo", max(len(tasks), 10))
    for i, task in enumerate(tasks):
        values = np.array([r["gradient_norm"][task] for r in records], float)
        smooth = _smooth(np.where(values > 0, values, np.nan))
        norms.plot(steps, smooth, color=colours(i), label=task, linewidth=1.2)
    norms.set(ylabel="gradient norm", yscale="log")
    if len(tasks) <= 12:
        norms.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    draw(balance, [r["condition_number"] for r in records], "tab:purple")
    balance.set(yscale="log", xlabel="step")
    balance.set_ylabel("condition number", color="tab:purple")
    other = balance.twinx()
    draw(other, [r["magnitude_similarity"] for r in records], "tab:green")
    other.set_ylim(-0.03, 1.03)
    other.set_ylabel("similarity of norms", color="tab:green")
    for axis in (norms, balance):
        _plain_log_ticks(axis)


def _plain_log_ticks(axis: Any) -> None:
    """2 and 50 in place of powers of ten: the ranges are short, the panels low."""
    low, high = axis.get_ylim()
    between = (1,) if high / low > 100 else (1, 2, 5) if high / low > 8 else (1, 2, 3, 4, 6)
    axis.yaxis.set_major_locator(ticker.LogLocator(subs=between))
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter(ticker.NullFormatter())


def confusion(counts: np.ndarray, classes: Sequence[str], title: str) -> Figure:
    """Shares of each true class, row by row; the numbers are shown where there are few classes."""
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    few = len(classes) <= FEW_CLASSES
    side = 1.8 + 0.5 * len(classes) if few else 1.5 + 0.14 * len(classes)
    figure, axis = plt.subplots(figsize=(side + 1, side), layout="constrained")
    picture = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    size = 9 if few else 5
    axis.set_xticks(range(len(classes)), _cut(classes), rotation=90, fontsize=size)
    axis.set_yticks(range(len(classes)), _cut(classes), fontsize=size)
    axis.set_xlabel("predicted")
    axis.set_ylabel("true")
    axis.set_title(title)
    figure.colorbar(picture, shrink=0.6, label="share of the true class")
    if few:
        for row, column in zip(*np.nonzero(counts), strict=True):
            ink = "white" if shares[row, column] > 0.5 else "black"
            axis.text(
                column, row, f"{counts[row, column]:.0f}", ha="center", va="center",
                color=ink, fontsize=8,
            )  # fmt: skip
    return figure


def calibration(bins: np.ndarray, title: str) -> Figure:
    """Reliability: how often the model was right where it was so sure, and how many rows that is.

    Args:
        bins: `[bins, 3]`: rows, the sum of their confidences, how many of them were right.
    """
    count, confidence, hits = np.asarray(bins, np.float64).T
    there = count > 0
    share = hits[there] / count[there]
    sure = confidence[there] / count[there]
    figure, axis = plt.subplots(figsize=(4.2, 4), layout="constrained")
    axis.plot([0, 1], [0, 1], "--", color="0.6", linewidth=1, label="as sure as right")
    error = 1.96 * np.sqrt(np.maximum(share * (1 - share), 0.25 / count[there]) / count[there])
    low, high = np.minimum(error, share), np.minimum(error, 1 - share)
    axis.errorbar(sure, share, (low, high), fmt="none", color="0.7", linewidth=1)
    axis.scatter(sure, share, 12 + 160 * count[there] / count.sum(), color="tab:blue", zorder=3)
    axis.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), title=title)
    axis.set_xlabel("probability that the model gave its answer")
    axis.set_ylabel("share of right answers")
    axis.legend(frameon=False, fontsize=8, loc="upper left")
    return figure


def predicted_against_true(points: np.ndarray, title: str) -> Figure:
    """A dot for each row, of `[rows, 2]`: its label and the prediction."""
    true, predicted = np.asarray(points, np.float64).T
    figure, axis = plt.subplots(figsize=(4.6, 4.4), layout="constrained")
    low, high = min(true.min(), predicted.min()), max(true.max(), predicted.max())
    axis.plot([low, high], [low, high], "--", color="0.6", linewidth=1, label="right")
    alpha = float(np.clip(40 / np.sqrt(len(true)) / 4, 0.15, 0.8))
    axis.scatter(true, predicted, 14, color="tab:blue", alpha=alpha, linewidths=0)
    axis.set(title=f"{title}: {len(true):,} rows", xlabel="label", ylabel="prediction")
    axis.legend(frameon=False, fontsize=8, loc="upper left")
    return figure


def comparison(columns: Mapping[str, Mapping[str, Any]], headlines: Mapping[str, str]) -> Figure:
    """Bars: each task's headline with all modalities, with each alone, and without looking."""
    figure, axis = plt.subplots(figsize=(1.2 + 1.9 * len(headlines), 3.2), layout="constrained")
    width = 0.8 / len(columns)
    places = np.arange(len(headlines))
    colours = ["tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple", "tab:brown"]
    for i, (name, results) in enumerate(columns.items()):
        values = [results.get(t, {}).get(h) for t, h in headlines.items()]
        heights = [np.nan if v is None else v for v in values]
        colour = "0.7" if name == "trivial" else colours[i % len(colours)]
        bars = axis.bar(
            places + i * width - 0.4 + width / 2, heights, width, label=name, color=colour
        )
        axis.bar_label(bars, fmt=lambda v: "" if not np.isfinite(v) else f"{v:.2f}", fontsize=7)
    labels = [f"{task}\n{headline.replace('_', ' ')}" for task, headline in headlines.items()]
    axis.set_xticks(places, labels, fontsize=8)
    axis.axhline(0, color="black", linewidth=0.6)
    # A model without what it needs can be far below zero (R2); the bars of interest stay readable.
    axis.set_ylim(bottom=max(axis.get_ylim()[0], -0.5))
    axis.legend(frameon=False, fontsize=8, ncols=len(columns), loc="upper center",
                bbox_to_anchor=(0.5, 1.17))  # fmt: skip
    return figure


def answers(arrays: Mapping[str, np.ndarray], key: str) -> Figure:
    """Queries and their best answers as pictures and names; the right answer is framed."""
    queries, found = arrays[f"query/{key}"], arrays[f"answer/{key}"]
    way = key.split("/")[0]
    query_modality, found_modality = way.split("_to_")
    rows, columns = len(queries), 2 + found.shape[1]
    figure, axes = plt.subplots(
        rows, columns, figsize=(1.35 * columns, 1.25 * rows), squeeze=False, layout="constrained"
    )
    figure.suptitle(
        f"{query_modality} asked, {found_modality} found, best first; the right one framed",
        fontsize=10,
    )

    def show(axis: Any, identity: int, kind: str, right: bool = False) -> None:
        name = textwrap.shorten(str(arrays[f"name/{identity}"]), 48, placeholder="..")
        words = textwrap.fill(name, 17)
        if kind == "text":
            axis.text(
                0.5, 0.5, words, ha="center", va="center", fontsize=8, transform=axis.transAxes
            )
        else:
            axis.imshow(arrays[f"picture/{identity}"])
            axis.set_xlabel(words, fontsize=6)
        for spine in axis.spines.values():
            spine.set_visible(right)
            spine.set_color("tab:green")
            spine.set_linewidth(3)

    for row, query, best in zip(axes, queries, found, strict=True):
        for axis in row:
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        show(row[0], query, query_modality)
        row[1].text(0.5, 0.5, "\u2192", ha="center", va="center", fontsize=16)
        for axis, answer in zip(row[2:], best, strict=True):
            show(axis, answer, found_modality, answer == query)
    return figure
