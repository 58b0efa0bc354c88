"""Labels of many numbers: a wave, a class for each pixel, a path of points."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import ImageColor

from mtmm_jax.markup import COLOURS, mark, plot, png, sound
from mtmm_jax.targets import number
from mtmm_jax.targets.kind import TargetKind, Words, blank
from mtmm_jax.targets.target import Target


def html_wave(target: Target, y: np.ndarray, words: Words) -> str:
    return sound(y, target.rate)


def html_mask(target: Target, y: np.ndarray, words: Words) -> str:
    """A colour for each class, white where it is not known, and what the colours mean."""
    palette = np.array([ImageColor.getrgb(colour) for colour in COLOURS], np.uint8)
    shown = np.where((y < 0)[..., None], np.uint8(255), palette[y % len(palette)])
    marks = " ".join(mark(target.classes[c], c) for c in np.unique(y[y >= 0]))
    return f"<div class=seen><img alt=mask src='{png(shown)}'></div>{marks}"


def blank_path(target: Target, batch_size: int) -> dict[str, np.ndarray]:
    return {
        "points": np.zeros((batch_size, *target.shape), np.float32),
        "valid": np.zeros((batch_size, *target.shape[:1]), bool),
    }


def describe_path(target: Target, y: dict[str, np.ndarray]) -> Target:
    """With mean and deviation of the coordinates of all points that are known."""
    points = np.asarray(y["points"])[y["valid"]]
    return number.describe(target, points) if points.size else target


def standardise_path(target: Target, y: dict[str, Any]) -> dict[str, Any]:
    return {**y, "points": number.standardise(target, y["points"])}


def undo_path(target: Target, z: dict[str, Any]) -> dict[str, Any]:
    return {**z, "points": number.undo(target, z["points"])}


def html_path(target: Target, y: dict[str, np.ndarray], words: Words) -> str:
    points = np.asarray(y["points"])[y["valid"]]
    return plot(points) if points.size else "empty"


WAVE = TargetKind(
    blank=blank(np.float32, lambda target: (target.length,)),
    column=None,
    html=html_wave,
    wide=True,
)

MASK = TargetKind(
    blank=blank(np.int32, lambda target: target.shape),
    column=None,
    html=html_mask,
)

PATH = TargetKind(
    blank=blank_path,
    describe=describe_path,
    small=False,
    standardise=standardise_path,
    undo=undo_path,
    column=None,
    html=html_path,
    wide=True,
)
