"""Figures of an analysis: contributions, subsets, affinity, robustness, what was looked at."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from mtmm_jax.analysis.intermediates import HeatMap, PatchMap

_FEW = 20  # places of an axis that are all named
_SUBSETS = 64  # rows of a picture; the table has them all
_COLOURS = plt.get_cmap("tab10").colors


def heat(
    axis: Any,
    values: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    shades: np.ndarray | None = None,
    colours: str = "Blues",
    limits: tuple[float | None, float | None] = (None, None),
    digits: int | None = 2,
) -> Any:
    """A heat map with named axes, numbers in its cells where there is room; NaN is grey.

    Args:
        axis: to draw on.
        values: `[rows, columns]`, as shown.
        rows, columns: names of the places; of many, some.
        shades: what the colours tell, if not the values themselves.
        colours, limits: the colour map and what its ends stand for.
        digits: of the numbers; None for no numbers.
    """
    shades = values if shades is None else shades
    palette = plt.get_cmap(colours).with_extremes(bad="0.9")
    low, high = limits
    picture = axis.imshow(shades, cmap=palette, vmin=low, vmax=high, aspect="auto")
    for names, size, place in (
        (columns, values.shape[1], axis.set_xticks),
        (rows, values.shape[0], axis.set_yticks),
    ):
        step = -(-size // _FEW)
        turned = {"rotation": 90} if place == axis.set_xticks else {}
        short = [textwrap.shorten(str(n), 26, placeholder="..") or " " for n in names[::step]]
        place(range(0, size, step), short, fontsize=8 if size <= _FEW else 6, **turned)
    if digits is None or values.shape[0] > _FEW or values.shape[1] > 12:
        return picture
    for row, column in zip(*np.nonzero(np.isfinite(values)), strict=True):
        red, green, blue, _ = picture.cmap(picture.norm(shades[row, column]))
        ink = "black" if 0.3 * red + 0.6 * green + 0.1 * blue > 0.5 else "white"
        shown = f"{values[row, column]:.{digits}f}".replace("-", "\u2212")
        axis.text(column, row, shown, ha="center", va="center", color=ink, fontsize=8)
    return picture


def contribution_bars(contribution: Mapping[str, Any]) -> Figure:
    """A column for each task: what each modality adds to its metric, and takes off its loss."""
    tasks = list(contribution)
    known = [c[key] for c in contribution.values() for key in ("metric", "loss") if c[key]]
    names = list(dict.fromkeys(name for shares in known for name in shares))
    height = 0.9 + 0.32 * len(names)
    figure, axes = plt.subplots(
        2, len(tasks), figsize=(1 + 2.6 * len(tasks), 2 * height), squeeze=False,
        layout="constrained", sharey=True,
    )  # fmt: skip
    for column, task in zip(axes.T, tasks, strict=True):
        shares = contribution[task]
        titles = (f"{task}\n{shares['name'].replace('_', ' ')}", "loss taken off")
        for axis, key, title in zip(column, ("metric", "loss"), titles, strict=True):
            axis.set_title(title, fontsize=9)
            axis.axvline(0, color="black", linewidth=0.6)
            axis.tick_params(labelsize=8)
            if not shares[key]:
                axis.text(0.5, 0.5, "not known", ha="center", transform=axis.transAxes, color="0.5")
                continue
            values = [shares[key][name] for name in names]
            colours = [_COLOURS[i % len(_COLOURS)] for i in range(len(names))]
            bars = axis.barh(names, values, color=colours)
            axis.bar_label(bars, fmt="%.3f", fontsize=7, padding=2)
            axis.margins(x=0.3)
    axes[0, 0].invert_yaxis()  # all panels share it
    return figure


def subset_map(subsets: Mapping[str, Any]) -> Figure:
    """A row for each subset of the modalities, a column for each task's metric.

    Colours run, within a column, from the worst to the best of its metrics.
    """
    tasks, rows = subsets["tasks"], subsets["subsets"]
    if len(rows) > _SUBSETS:  # alone, all but one, and the ends
        whole = len(rows[-1]["modalities"])
        rows = [row for row in rows if len(row["modalities"]) in (0, 1, whole - 1, whole)]
    values = _numbers([[row["metric"][task] for task in tasks] for row in rows])
    sign = np.array([1.0 if subsets["larger_is_better"][task] else -1.0 for task in tasks])
    best = values * sign
    known = np.isfinite(best)
    low = np.where(known, best, np.inf).min(0)
    high = np.where(known, best, -np.inf).max(0)
    shades = (best - low) / np.where(high > low, high - low, 1.0)
    names = [" + ".join(row["modalities"]) or "nothing (trivial)" for row in rows]
    titles = [f"{task}: {metric.replace('_', ' ')}" for task, metric in tasks.items()]
    size = (3 + 1.1 * len(tasks), 1.8 + 0.3 * len(rows))
    figure, axis = plt.subplots(figsize=size, layout="constrained")
    limits = (0.0, 1.0)
    heat(axis, values, names, titles, shades=shades, limits=limits, digits=3)
    axis.set_ylabel("what the model sees")
    return figure


def affinity_maps(affinity: Mapping[str, Any]) -> Figure:
    """CKA, CCA and cross-prediction side by side."""
    names = affinity["modalities"]
    titles = {
        "cka": "CKA (unbiased)",
        "cca": "mean CCA, held out",
        "r2": "R\u00b2 of the column from the row",
    }
    side = 1.6 + 0.55 * len(names)
    figure, axes = plt.subplots(1, 3, figsize=(3 * side, side), layout="constrained")
    for axis, (key, title) in zip(axes, titles.items(), strict=True):
        values = _numbers(affinity[key])
        np.fill_diagonal(values, np.nan)  # itself: no news
        heat(axis, values, names, names, limits=(0, 1))
        axis.set_title(title, fontsize=9)
    return figure


def task_relatedness(affinity: Mapping[str, Any]) -> Figure:
    """The content of `relatedness.json`: both affinities of the tasks, their groups framed and side
    by side, and the weights that were made of it.

    Look-ahead affinities are shown in percent of the loss, with colours that compare within a row.
    """
    tasks, groups = list(affinity["tasks"]), affinity["groups"] or []
    order = [name for group in groups for name in group]
    order += [name for name in tasks if name not in order]
    places = np.ix_(*[[tasks.index(name) for name in order]] * 2)
    share, cosine = (_numbers(affinity[key])[places] for key in ("lookahead", "cosines"))
    np.fill_diagonal(cosine, np.nan)  # itself: no news
    most = np.abs(np.nan_to_num(share)).max(1, keepdims=True)
    shades = share / np.where(most > 0, most, 1.0)
    panels = {
        "lookahead": ("% off the row's loss by\na step on the column", 100 * share, shades),
        "cosines": ("cosine of the gradients", cosine, cosine),
    }
    side = 1.8 + 0.6 * len(tasks)
    columns = 2 + bool(affinity["weights"])
    figure, axes = plt.subplots(1, columns, figsize=(columns * side, side), layout="constrained")
    for axis, (key, (title, values, tint)) in zip(axes, panels.items(), strict=False):
        heat(axis, values, order, order, shades=tint, colours="RdBu", limits=(-1, 1))
        axis.set_title(title + (" (used)" if key == affinity["measure"] else ""), fontsize=9)
        start = 0
        for group in groups:
            corner = (start - 0.5, start - 0.5)
            frame = plt.Rectangle(corner, len(group), len(group), fill=False, linewidth=2)
            axis.add_patch(frame).set_clip_on(False)
            start += len(group)
    if affinity["weights"]:
        weights = [affinity["weights"][name] for name in order]
        bars = axes[-1].barh(order, weights, color=_COLOURS[0])
        axes[-1].bar_label(bars, fmt="%.2f", fontsize=8, padding=2)
        axes[-1].axvline(1, color="0.6", linewidth=0.8)
        axes[-1].margins(x=0.2)
        axes[-1].invert_yaxis()
        axes[-1].tick_params(labelsize=8)
        axes[-1].set_title("weight", fontsize=9)
    return figure


def robustness_curves(robustness: Mapping[str, Any]) -> Figure:
    """A row for each modality, a column for each task, a line for each kind of damage.

    Dashed: the best single modality under the same damage.
    """
    tasks = list(robustness)
    modalities = list(robustness[tasks[0]]["modalities"])
    figure, axes = plt.subplots(
        len(modalities), len(tasks), figsize=(1.6 + 2.6 * len(tasks), 0.6 + 2.1 * len(modalities)),
        squeeze=False, sharex=True, sharey="col", layout="constrained",
    )  # fmt: skip
    for place, modality in enumerate(modalities):
        row = axes[place]
        for axis, task in zip(row, tasks, strict=True):
            summary = robustness[task]
            own = summary["baseline"] == modality
            for i, (damage, numbers) in enumerate(summary["modalities"][modality].items()):
                colour, metrics = _COLOURS[i % len(_COLOURS)], _numbers(numbers["metrics"])
                axis.plot(metrics, "o-", color=colour, markersize=3, label=damage)
                if own:
                    axis.plot(_numbers(numbers["baseline"]), "--", color=colour, linewidth=1)
                elif i == 0:  # it does not see this modality: one flat line
                    axis.plot(_numbers(numbers["baseline"]), "--", color="0.6", linewidth=1)
            axis.tick_params(labelsize=8)
            if place == 0:
                axis.set_title(f"{task}\n{summary['metric'].replace('_', ' ')}", fontsize=9)
            if place == len(modalities) - 1:
                axis.set_xlabel("severity", fontsize=8)
        row[0].set_ylabel(f"{modality} damaged", fontsize=9)
        row[-1].legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def heat_maps(maps: Sequence[HeatMap]) -> Figure:
    """Gates, weights and routing, a panel each."""
    columns = min(3, len(maps))
    rows = -(-len(maps) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(4.2 * columns, 3.4 * rows), squeeze=False, layout="constrained"
    )
    for axis in axes.flat[len(maps) :]:
        axis.set_axis_off()
    for axis, shown in zip(axes.flat, maps, strict=False):
        signed = bool((shown.values < 0).any())
        limit = float(np.abs(shown.values).max(initial=0.0)) or 1.0
        picture = heat(
            axis, shown.values, shown.rows.labels, shown.columns.labels,
            colours="RdBu" if signed else "Blues", limits=(-limit if signed else 0.0, limit),
        )  # fmt: skip
        axis.set_title(_broken(shown.path), fontsize=8)
        axis.set_xlabel(shown.columns.name, fontsize=8)
        axis.set_ylabel(shown.rows.name, fontsize=8)
        figure.colorbar(picture, ax=axis, shrink=0.7).ax.tick_params(labelsize=7)
    return figure


def patch_attention(maps: Sequence[PatchMap], pictures: Mapping[int, np.ndarray]) -> Figure:
    """A row for each sample: its picture, and the attention of each word (or token) over it.

    Args:
        maps: of one intermediate.
        pictures: sample -> `[H, W, 3]` in 0..1; without one the attention is drawn by itself.
    """
    columns = 1 + max(len(shown.values) for shown in maps)
    figure, axes = plt.subplots(
        len(maps), columns, figsize=(1.35 * columns, 0.5 + 1.45 * len(maps)), squeeze=False,
        layout="constrained",
    )  # fmt: skip
    figure.suptitle(_broken(maps[0].path), fontsize=9)
    for row, shown in zip(axes, maps, strict=True):
        for axis in row:
            axis.set_axis_off()
        picture = pictures.get(shown.sample)
        height, width = shown.values.shape[1:] if picture is None else picture.shape[:2]
        frame = (0, width, height, 0)
        if picture is not None:
            row[0].imshow(picture, extent=frame)
        # One scale for a sample's words; a flat map of 1 / patches stays pale.
        top = max(float(shown.values.max(initial=0.0)), 1e-9)
        for axis, label, weights in zip(row[1:], shown.rows.labels, shown.values, strict=False):
            if picture is not None:
                axis.imshow(picture.mean(-1), cmap="gray", extent=frame, vmin=0, vmax=1)
            axis.imshow(
                weights, cmap="inferno", vmin=0, vmax=top, extent=frame,
                alpha=1.0 if picture is None else 0.65,
            )  # fmt: skip
            axis.set_title(textwrap.shorten(label, 16, placeholder="..") or " ", fontsize=8)
    return figure


def _numbers(values: Any) -> np.ndarray:
    """Floats, with NaN for the None of JSON."""
    return np.array(values, dtype=object).astype(float) if values is not None else np.array([])


def _broken(path: str) -> str:
    """A long path over two lines."""
    return "\n".join(textwrap.wrap(path.replace("/", " / "), 44)[:2]).replace(" / ", "/")
