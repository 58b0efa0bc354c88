"""Scenes: several emoji on one background, composed on the fly. What is where, and how many?

Sprites have whole numbers of pixels, so that all sprites of a size go through one matrix, and are
shrunk from a half-size copy where that is large enough.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Annotated

import numpy as np

from mtmm_jax.batch import Batch, Modality, Spec, Target
from mtmm_jax.chance import uniform
from mtmm_jax.data.pipeline.source import SPLITS, Source
from mtmm_jax.data.sources.emoji.asset import STYLES, TILE
from mtmm_jax.data.sources.emoji.prepared import Emoji, load
from mtmm_jax.data.sources.emoji.source import check_styles
from mtmm_jax.data.transforms.augment import background, between
from mtmm_jax.ranges import Natural, Range, SplitSizes
from mtmm_jax.readers import images
from mtmm_jax.registry import ConfigError, checked, choose

CLASSES = ("category", "subcategory", "emoji")
VISIBLE = 0.1  # a pixel belongs to an emoji, and to its box, from this share of cover on
OVERLAP = 0.15  # of the smaller of two sprites' squares, at most
_SMALLEST, _LARGEST = 0.2, 0.6  # sides of sprites in shares of the picture's
_TRIES = 20  # places drawn for each sprite; the first that is free is taken
_BACKGROUND = 9  # draws of a background
_EACH = 3 + 2 * _TRIES  # draws of a sprite: which, in which style, its size, its places
_SPLIT = 2**24  # a row's number is that of its split times this, plus its place in the split
_SURVEYED = 4096  # training scenes that frequencies, mean and deviation are counted on
_SALT = 0x5CE7E5  # of the scenes that a row has when chance does not decide


@functools.partial(checked, where="data.emoji_scenes")
def emoji_scenes(
    *,
    image_size: Annotated[int, Range(16, 2**14)] = 64,
    most: Annotated[int, Range(1, 64)] = 6,
    classes: str = "category",
    styles: str | Sequence[str] = STYLES,
    size: SplitSizes = (4096, 512, 512),
    augment: bool = True,
    seed: Natural = 0,
    data_dir: str | None = None,
) -> Source:
    """Pictures of one to `most` emoji on a plain or graded background: find, name and count them.

    The drawings are real (see the emoji's card), the scenes are made up: any concept of the split
    is as likely as any other, sizes and places are random, squares overlap by at most 15% of the
    smaller, the later over the earlier; an emoji that finds no room in 20 tries is left out (of 1
    scene in 45 with the defaults). Concepts of training scenes are those of the training split
    only, likewise for validation and test. A training row is a new scene in every epoch; scenes of
    validation and test are always the same ones, whatever the seed and the sizes.

    Targets: `boxes`, tight around what is visible (10% of a pixel covered, or more) of each emoji
    drawn alone; `count`, how many there are; `present_categories`, which of the 9 categories occur.

    Costs no download; scenes are drawn while training. Use it: for detection and counting. Not: for
    natural pictures.

    Args:
        image_size: side of the pictures, float32 in -1..1.
        most: emoji in a scene; their number is uniform over 1..most.
        classes: of the boxes: "category" (9), "subcategory" (98) or "emoji" (1: is there one).
        styles: which drawings, of "noto" and "twemoji".
        size: scenes in train (an epoch), validation and test.
        augment: whether training scenes are new in every epoch; else each row keeps its scene.
        seed: of shuffling and of the training scenes.
        data_dir: where the prepared data are kept; `$MTMM_JAX_DATA` or `~/.cache/mtmm_jax`.
    """
    where = "data.emoji_scenes"
    choose(classes, CLASSES, f"{where}.classes")
    styles = check_styles(styles, where)
    if max(size) > _SPLIT:
        raise ConfigError(f"{where}.size: {size}; at most {_SPLIT} scenes in a split")
    table = load(data_dir)
    cast = Cast.of(table, styles, image_size, most, classes)
    rows = {s: i * _SPLIT + np.arange(size[i]) for i, s in enumerate(SPLITS)}
    return Source(
        name="emoji_scenes",
        spec=_spec(cast, plan(cast, rows["train"][:_SURVEYED], None)),
        rows=rows,
        compose=functools.partial(_compose, cast),
        draws=_draws(most),
        assets={},
        describe=functools.partial(_describe, cast, augment),
        picture=functools.partial(_picture, cast),
        augment=augment,
        seed=seed,
    )


@dataclasses.dataclass(frozen=True)
class Cast:
    """The emoji that may appear in a scene, and their drawings.

    Attributes:
        names: of the boxes' classes, `kinds` `[N]` the class of each concept.
        members: for each split the concepts that are in it.
        drawings: side in pixels -> `[S, N, 4, side, side]` uint8, premultiplied alpha.
    """

    table: Emoji
    size: int
    most: int
    names: tuple[str, ...]
    kinds: np.ndarray
    members: tuple[np.ndarray, ...]
    drawings: dict[int, np.ndarray]

    @classmethod
    def of(cls, table: Emoji, styles: tuple[str, ...], size: int, most: int, classes: str) -> Cast:
        whole = np.stack([table.drawings[style] for style in styles])
        half = np.stack([halve(table.drawings[style]) for style in styles])
        names, kinds = ("emoji",), np.zeros(len(table.names), np.int32)
        if classes != "emoji":
            names, kinds = table.classes[classes], table.labels[classes]
        members = tuple(np.flatnonzero(table.split == split) for split in SPLITS)
        return cls(table, size, most, names, kinds, members, {TILE: whole, TILE // 2: half})


@dataclasses.dataclass(frozen=True)
class Plan:
    """Scenes before they are drawn; sprites `[B, most]` in the order in which they are put down.

    Attributes:
        used: whether there is such a sprite.
        side, top, left: of its square, in pixels.
        background: `[B, 9]` chance.
    """

    used: np.ndarray
    concept: np.ndarray
    style: np.ndarray
    side: np.ndarray
    top: np.ndarray
    left: np.ndarray
    background: np.ndarray


def plan(cast: Cast, rows: np.ndarray, chance: np.ndarray | None) -> Plan:
    """Emoji and places of each row's scene: by `chance`, or the row's fixed scene without it."""
    size, most = cast.size, cast.most
    if chance is None:
        chance = uniform(_draws(most), _SALT, rows)
    count = 1 + (chance[:, 0] * most).astype(int)
    each = chance[:, 1 + _BACKGROUND :].reshape(len(rows), most, _EACH)
    who, style, scale, places = np.split(each, [1, 2, 3], axis=2)
    split = rows // _SPLIT
    numbers = np.array([len(members) for members in cast.members])[split, None]
    starts = np.cumsum([0, *map(len, cast.members[:-1])])[split, None]
    concept = np.concatenate(cast.members)[starts + (who[..., 0] * numbers).astype(int)]
    # Many emoji are smaller ones, or they would find no room.
    largest = np.clip(0.75 / np.sqrt(count), _smallest(most), _LARGEST)[:, None]
    side = np.maximum(np.round(size * between(scale[..., 0], _smallest(most), largest)), 4)
    side = side.astype(int)
    tries = places.reshape(len(rows), most, _TRIES, 2)
    corners = (tries * (size - side + 1)[..., None, None]).astype(int)
    used = np.arange(most) < count[:, None]
    top, left = np.zeros_like(side), np.zeros_like(side)
    for i in range(most):
        free = np.ones((len(rows), _TRIES), bool)
        for j in range(i):
            shared = 1
            for at, other in ((corners[:, i, :, 0], top), (corners[:, i, :, 1], left)):
                stop = np.minimum(at + side[:, i, None], (other + side)[:, j, None])
                shared = shared * np.maximum(stop - np.maximum(at, other[:, j, None]), 0)
            most_shared = OVERLAP * np.minimum(side[:, i], side[:, j]) ** 2
            free &= (shared <= most_shared[:, None]) | ~used[:, j, None]
        first = free.argmax(1)
        used[:, i] &= free.any(1)
        top[:, i], left[:, i] = corners[np.arange(len(rows)), i, first].T
    drawn = (style[..., 0] * len(cast.drawings[TILE])).astype(int)
    return Plan(used, concept, drawn, side, top, left, chance[:, 1 : 1 + _BACKGROUND])


def render(cast: Cast, scenes: Plan) -> tuple[np.ndarray, np.ndarray]:
    """Pictures `[B, S, S, 3]` in -1..1, and the tight boxes in pixels, `[B, most, 4]` int."""
    where = np.argwhere(scenes.used)
    sprites: list[np.ndarray] = [np.empty(0)] * len(where)
    boxes = np.zeros((*scenes.used.shape, 4), int)
    sides = scenes.side[scenes.used]
    for side in np.unique(sides):
        some = np.flatnonzero(sides == side)
        b, i = where[some].T
        drawn = _shrink(cast, scenes.style[b, i], scenes.concept[b, i], int(side))
        corner = np.stack([scenes.top[b, i], scenes.left[b, i]], 1)
        boxes[b, i] = _extent(drawn[:, 3] >= VISIBLE) + np.tile(corner, 2)
        for place, sprite in zip(some, drawn, strict=True):
            sprites[place] = sprite
    canvas = np.ascontiguousarray(background(cast.size, scenes.background))
    for (b, i), sprite in zip(where, sprites, strict=True):
        side, top, left = scenes.side[b, i], scenes.top[b, i], scenes.left[b, i]
        under = canvas[b, :, top : top + side, left : left + side]
        under *= 1 - sprite[3:]
        under += sprite[:3]
    return images.normalise(np.clip(canvas, 0, 1, out=canvas)), boxes


def _smallest(most: int) -> float:
    return min(_SMALLEST, 0.7 / math.sqrt(most))


def _draws(most: int) -> int:
    return 1 + _BACKGROUND + most * _EACH


def halve(planes: np.ndarray) -> np.ndarray:
    """Premultiplied `[N, 4, 2h, 2w]` -> `[N, 4, h, w]` uint8: the mean of every four pixels."""
    quarter = [planes[..., i::2, j::2].astype(np.uint16) for i in (0, 1) for j in (0, 1)]
    return ((sum(quarter) + 2) // 4).astype(np.uint8)


@functools.lru_cache(maxsize=256)
def _matrix(source: int, side: int) -> np.ndarray:
    one = np.ones(1, np.float32)
    return images.resize_matrix(source, side, one, 0 * one)[0]


def _shrink(cast: Cast, style: np.ndarray, concept: np.ndarray, side: int) -> np.ndarray:
    """Drawings as sprites of one size: `[n, 4, side, side]` in 0..1."""
    source = TILE // 2 if side <= TILE // 2 else TILE
    matrix = _matrix(source, side)
    return images.view(cast.drawings[source][style, concept], matrix[None], matrix[None])


def _extent(visible: np.ndarray) -> np.ndarray:
    """`[n, 4]`: first and last-plus-one row and column (y0, x0, y1, x1) of what is visible."""
    down, across = visible.any(2), visible.any(1)
    size = visible.shape[1]
    return np.stack(
        [
            down.argmax(1),
            across.argmax(1),
            size - down[:, ::-1].argmax(1),
            size - across[:, ::-1].argmax(1),
        ],
        axis=1,
    )


def _spec(cast: Cast, survey: Plan) -> Spec:
    """Frequencies of classes are shares of the boxes, of present categories shares of scenes."""
    categories = cast.table.classes["category"]
    count = survey.used.sum(1)
    boxed = np.bincount(cast.kinds[survey.concept][survey.used], minlength=len(cast.names))
    shown = _categories(cast, survey).mean(0)
    return Spec(
        {"image": Modality("image", (cast.size, cast.size, 3), "float32")},
        {
            "boxes": Target(
                "boxes",
                classes=tuple(cast.names),
                frequencies=tuple((boxed / boxed.sum()).tolist()),
                length=cast.most,
            ),
            "count": Target("number", mean=float(count.mean()), std=float(count.std()) or 1.0),
            "present_categories": Target(
                "labels", classes=tuple(categories), frequencies=tuple(shown.tolist())
            ),
        },
    )


def _categories(cast: Cast, scenes: Plan) -> np.ndarray:
    """`[B, C]`, 1 where a category is in the scene."""
    found = np.zeros((len(scenes.used), len(cast.table.classes["category"])), np.float32)
    category = cast.table.labels["category"][scenes.concept]
    found[np.nonzero(scenes.used)[0], category[scenes.used]] = 1
    return found


def _compose(cast: Cast, rows: np.ndarray, chance: np.ndarray | None) -> Batch:
    scenes = plan(cast, rows, chance)
    pictures, boxes = render(cast, scenes)
    # Slots that hold a box come first.
    order = np.argsort(~scenes.used, axis=1, kind="stable")
    valid = np.take_along_axis(scenes.used, order, 1)
    ordered = np.take_along_axis(boxes, order[..., None], 1).astype(np.float32) / cast.size
    kinds = np.take_along_axis(cast.kinds[scenes.concept], order, 1)
    present = np.ones(len(rows), bool)
    labels = {
        "boxes": {"boxes": ordered, "classes": np.where(valid, kinds, 0), "valid": valid},
        "count": scenes.used.sum(1).astype(np.float32),
        "present_categories": _categories(cast, scenes),
    }
    return {
        "inputs": {"image": {"x": pictures, "present": present}},
        "targets": {name: {"y": y, "present": present} for name, y in labels.items()},
        "id": rows.astype(np.int32),
    }


def _describe(cast: Cast, renewed: bool, id: int) -> str:
    """The id of a scene: its content; a number for a training row that is a new scene in each
    epoch."""
    if renewed and id < _SPLIT:
        return f"training scene {id}"
    scene = plan(cast, np.array([id]), None)
    return ", ".join(cast.table.names[c] for c in scene.concept[scene.used])


def _picture(cast: Cast, id: int) -> np.ndarray:
    pictures, _ = render(cast, plan(cast, np.array([id]), None))
    return np.round((pictures[0] + 1) * 127.5).astype(np.uint8)
