"""Boxes in a picture, moved to where the picture lies on its square."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from mtmm_jax.markup import mark
from mtmm_jax.ranges import Size
from mtmm_jax.readers.cells import Setting, by_size, class_name, number
from mtmm_jax.readers.limits import Unreadable
from mtmm_jax.registry import ConfigError, choose
from mtmm_jax.targets.column import Classes, Column, Label, check_classes, frequencies, index, most
from mtmm_jax.targets.kind import Count, TargetKind, Words
from mtmm_jax.targets.target import Target

UNITS = ("pixels", "fractions")
_OVER = 1.0  # pixels by which a box may stick out of its picture: it is cut


@dataclasses.dataclass(frozen=True, kw_only=True)
class BoxesColumn(Column):
    """A list of `{"box": [y0, x0, y1, x1], "class": name}`; an empty one means that there is none.

    Args:
        units: "pixels" of the upright picture in the file, or "fractions" of its height and width.
        of: the picture's modality; may be left out where there is one only.
        classes: names, or how many; those of the train split by default.
        length: how many boxes there is room for; the most that a row has by default.
    """

    units: str
    of: str | None = None
    classes: Classes = None
    length: Size | None = None

    def __post_init__(self) -> None:
        choose(self.units, UNITS, f"{self.where}.units", "unit")

    def with_pictures(self, pictures: Sequence[str]) -> BoxesColumn:
        """With `of` filled in: the modality whose pictures the boxes are in."""
        if not pictures:
            raise ConfigError(f"{self.where}: boxes need a modality of kind image")
        if self.of is not None or len(pictures) != 1:
            choose(self.of, pictures, f"{self.where}.of", "picture")
        return dataclasses.replace(self, of=self.of or pictures[0])

    def parse(self, setting: Setting) -> list[list[tuple[list[float], str]] | None]:
        return setting.cells(self.at, self.where, self._boxes)

    def _boxes(self, value: Any) -> list[tuple[list[float], str]]:
        if not isinstance(value, list):
            raise Unreadable("is not a list of boxes")
        if self.length is not None and len(value) > self.length:
            raise Unreadable(f"has {len(value)} boxes; there is room for {self.length}")
        return [self._box(entry) for entry in value]

    def _box(self, entry: Any) -> tuple[list[float], str]:
        if not isinstance(entry, dict) or set(entry) != {"box", "class"}:
            raise Unreadable('has a box that is not {"box": [y0, x0, y1, x1], "class": name}')
        if not isinstance(entry["box"], list) or len(entry["box"]) != 4:
            raise Unreadable("has a box without four numbers")
        y0, x0, y1, x1 = box = [number(side) for side in entry["box"]]
        if not (y0 < y1 and x0 < x1):
            raise Unreadable(f"has a box without an area: {box}")
        if self.units == "fractions" and not (min(box) >= 0 and max(box) <= 1):
            raise Unreadable(f"has a box that is not in 0..1: {box}")
        return box, class_name(entry["class"])

    def fit(self, cells: list[Any], setting: Setting, train: np.ndarray) -> Label:
        found = [name for boxes in setting.some(self.at, cells, train) for _, name in boxes]
        classes = check_classes(self.classes, self.where) or by_size(set(found))
        if not classes:
            setting.bad.structure(
                None, self.at, None, "has no box in the train split", "empty column"
            )
        length = self.length or max([len(boxes) for boxes in cells if boxes], default=1)
        share = frequencies(collections.Counter(found), classes, len(found))
        target = Target(self.kind, classes, share, made_from=tuple(self.made_from), length=length)
        at = {name: i for i, name in enumerate(classes)}
        y = target.blank(len(cells))
        for row, boxes in enumerate(cells):
            for slot, (box, name) in enumerate(boxes or ()):
                y["boxes"][row, slot] = box
                y["classes"][row, slot] = index(at, name, setting, row, self.at)
                y["valid"][row, slot] = True
        known = np.array([cell is not None for cell in cells], bool)
        return Label(target, y, known, of=self.of, place=self._place)

    def _place(
        self, y: dict[str, np.ndarray], pictures: Sequence[Any]
    ) -> tuple[dict[str, np.ndarray], list[str | None]]:
        sizes = [(1, 1) if one is None else (one.height, one.width) for one in pictures]
        sizes = np.array(sizes, np.float32)
        ends = np.tile(sizes, 2)[:, None]
        boxes = y["boxes"] * ends if self.units == "fractions" else y["boxes"]
        over = ((boxes < -_OVER) | (boxes > ends + _OVER)).any(-1) & y["valid"]
        reasons: list[str | None] = [None] * len(boxes)
        for i in np.flatnonzero(over.any(1)):
            if pictures[i] is not None:
                height, width = sizes[i].astype(int)
                reasons[i] = f"has a box outside of its picture, {height} x {width} (y, x)"
        side = sizes.max(1, keepdims=True)
        margin = np.tile((side - sizes) // 2, 2)[:, None]
        placed = (np.clip(boxes, 0, ends) + margin) / side[:, None]
        return {**y, "boxes": np.where(y["valid"][..., None], placed, 0)}, reasons


def blank(target: Target, batch_size: int) -> dict[str, np.ndarray]:
    slots = (batch_size, target.length)
    return {
        "boxes": np.zeros((*slots, 4), np.float32),
        "classes": np.zeros(slots, np.int32),
        "valid": np.zeros(slots, bool),
    }


def per_class(target: Target, y: dict[str, np.ndarray]) -> np.ndarray:
    """`[n, C]`: how many boxes of each class an example has."""
    every = np.eye(len(target.classes), dtype=np.float32)
    return (every[np.where(y["valid"], y["classes"], 0)] * y["valid"][..., None]).sum(1)


def describe(target: Target, y: dict[str, np.ndarray]) -> Target:
    """With the frequencies of the classes among the boxes."""
    counts = np.bincount(y["classes"][y["valid"]], minlength=len(target.classes))
    if not counts.sum():
        return target
    return dataclasses.replace(target, frequencies=tuple((counts / counts.sum()).tolist()))


def places(target: Target, y: dict[str, np.ndarray]) -> list[tuple[str, np.ndarray]]:
    valid = y["valid"]
    found = zip(y["classes"][valid], y["boxes"][valid], strict=True)
    return [(target.classes[kind], at) for kind, at in found]


def html(target: Target, y: dict[str, np.ndarray], words: Words) -> str:
    """The classes, in the colours of the boxes."""
    return " ".join(mark(name, j) for j, (name, _) in enumerate(places(target, y))) or "none"


def guess(values: Sequence[Any]) -> dict[str, Any] | None:
    """Lists of objects with a box; fractions where no side is over 1."""
    if not most(values, _is_boxes):
        return None
    return {"units": "fractions" if all(_small(value) for value in values) else "pixels"}


def _is_boxes(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(v, dict) and "box" in v for v in value)


def _small(value: Any) -> bool:
    boxes = [v["box"] for v in value if isinstance(v, dict) and "box" in v] if value else []
    sides = [side for box in boxes if isinstance(box, list) for side in box]
    return all(isinstance(side, int | float) and 0 <= side <= 1 for side in sides)


BOXES = TargetKind(
    blank=blank,
    count=Count(per_class, classes=True, parts="boxes"),
    describe=describe,
    small=False,
    column=BoxesColumn,
    guess=guess,
    task="detection",
    html=html,
    wide=True,
    places=places,
)
