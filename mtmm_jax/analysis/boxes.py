"""Boxes over pictures: what a detector found next to what is there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

_COLUMNS = 4


def draw_detections(
    image: np.ndarray,
    boxes: Iterable[Mapping[str, Any]],
    truth: Iterable[Mapping[str, Any]] = (),
    axis: Axes | None = None,
) -> Figure:
    """A picture with boxes on it: those found in colour with class and score, true ones dashed.

    Args:
        image: `[H, W, 3]`, uint8, or floats in -1..1 as models see them.
        boxes: as `decode` of a detection task gives them: {"class", "score", "box"}, the box as
            y0, x0, y1, x1 in 0..1.
        truth: likewise; the score may be left out.
        axis: where to draw; a new figure by default.
    """
    if axis is None:
        _, axis = plt.subplots(figsize=(3.2, 3.2), layout="constrained")
    image = np.asarray(image)
    if image.dtype != np.uint8:
        image = np.clip(np.round((image + 1) * 127.5), 0, 255).astype(np.uint8)
    axis.imshow(image)
    axis.set_axis_off()
    height, width = image.shape[:2]
    scale = np.array([height, width, height, width])
    for one in truth:
        _rectangle(axis, scale * one["box"], "white", linestyle="--", linewidth=1)
    boxes = list(boxes)
    kinds = sorted({one["class"] for one in boxes})
    for one in boxes:
        colour = plt.get_cmap("tab10")(kinds.index(one["class"]) % 10)
        box = scale * one["box"]
        _rectangle(axis, box, colour, linewidth=1.5)
        score = f" {one['score']:.2f}" if "score" in one else ""
        axis.text(
            box[1] - 0.5, box[0] - 0.5, one["class"] + score, fontsize=6, color="white",
            va="bottom", clip_on=True, bbox={"facecolor": colour, "pad": 0.8, "linewidth": 0},
        )  # fmt: skip
    return axis.figure


def detections(
    images: Sequence[np.ndarray],
    boxes: Sequence[Iterable[Mapping[str, Any]]],
    truth: Sequence[Iterable[Mapping[str, Any]]] | None = None,
) -> Figure:
    """`draw_detections` for several pictures, four a line."""
    rows = -(-len(images) // _COLUMNS)
    columns = min(len(images), _COLUMNS)
    figure, axes = plt.subplots(
        rows, columns, figsize=(2.6 * columns, 2.6 * rows), squeeze=False, layout="constrained"
    )
    for axis in axes.flat:
        axis.set_axis_off()
    for i, (image, found) in enumerate(zip(images, boxes, strict=True)):
        draw_detections(image, found, truth[i] if truth else (), axes.flat[i])
    return figure


def _rectangle(axis: Axes, box: np.ndarray, colour: Any, **line: Any) -> None:
    """Pixels' middles are whole numbers on the axes, so edges lie half a pixel before."""
    corner, side = (box[1] - 0.5, box[0] - 0.5), (box[3] - box[1], box[2] - box[0])
    axis.add_patch(Rectangle(corner, *side, fill=False, edgecolor=colour, **line))
