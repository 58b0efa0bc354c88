"""Boxes in a picture, moved to where the picture lies on its square."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from mtmm_jax.batch import Target
from mtmm_jax.data.sources.manifest.labels import Label, check_classes, frequencies, index
from mtmm_jax.readers.cells import Setting, by_size, class_name, number, whole
from mtmm_jax.readers.limits import Unreadable
from mtmm_jax.registry import ConfigError, choose

UNITS = ("pixels", "fractions")
_OVER = 1.0  # pixels by which a box may stick out of its picture: it is cut


@dataclasses.dataclass(frozen=True, kw_only=True)
class BoxesTarget:
    """A list of `{"box": [y0, x0, y1, x1], "class": name}`; an empty one says that there is none.

    Args:
        units: "pixels" of the upright picture in the file, or "fractions" of its height and width.
        of: the picture's modality; may be left out where there is one only.
        classes: names, or how many; those of the train split by default.
        length: how many boxes there is room for; the most that a row has by default.
    """

    own: str
    where: str
    units: str
    of: str | None = None
    column: str | None = None
    made_from: Sequence[str] = ()
    classes: Sequence[str] | int | None = None
    length: int | None = None

    def __post_init__(self) -> None:
        choose(self.units, UNITS, f"{self.where}.units", "unit")
        if self.length is not None:
            whole(self.where, length=self.length)

    @property
    def at(self) -> str:
        return self.column or self.own

    def picture(self, pictures: Sequence[str]) -> str:
        """The modality whose pictures the boxes are in."""
        if self.of is not None or len(pictures) != 1:
            choose(self.of, pictures, f"{self.where}.of", "picture")
        return self.of or pictures[0]

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
        target = Target("boxes", classes, share, made_from=tuple(self.made_from), length=length)
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


def check_pictures(target: BoxesTarget, pictures: Sequence[str]) -> BoxesTarget:
    """With `of` filled in."""
    if not pictures:
        raise ConfigError(f"{target.where}: boxes need a modality of kind image")
    return dataclasses.replace(target, of=target.picture(pictures))
