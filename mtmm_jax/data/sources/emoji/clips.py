"""Clips: a moving emoji with its name as caption and its speech. What happens, and to what?

A clip is a path on a ring in four directions (across, down, size, angle): what leaves on one side
comes back on the other. Its start is uniform, so that no single frame says anything of the event.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Annotated

import numpy as np

from mtmm_jax.batch import Batch, Modality, Spec, Target
from mtmm_jax.chance import uniform
from mtmm_jax.data.pipeline.source import Source
from mtmm_jax.data.sources.emoji.asset import STYLES, TILE
from mtmm_jax.data.sources.emoji.prepared import Emoji, load
from mtmm_jax.data.sources.emoji.scenes import VISIBLE, halve
from mtmm_jax.data.sources.emoji.source import (
    TEXTS,
    VOCABULARY,
    Telling,
    check_styles,
    concept_rows,
    draw,
    picture,
)
from mtmm_jax.data.transforms.augment import background, between
from mtmm_jax.ranges import Natural, Range, ShortText, Utterance
from mtmm_jax.readers import images
from mtmm_jax.registry import checked, choose
from mtmm_jax.text import UNITS, Tokenizers, train_words

# Event -> the direction of the ring that changes, and its sign (0: either).
_ACROSS, _DOWN, _SIZE, _ANGLE = range(4)
EVENTS = {
    "left": (_ACROSS, -1),
    "right": (_ACROSS, 1),
    "up": (_DOWN, -1),
    "down": (_DOWN, 1),
    "grow": (_SIZE, 1),
    "shrink": (_SIZE, -1),
    "spin": (_ANGLE, 0),
    "shake": (_ACROSS, 0),
}
_DIRECTIONS = np.array([direction for direction, _ in EVENTS.values()])
_SIGNS = np.array([sign for _, sign in EVENTS.values()])
_SLOW, _FAST = 0.5, 0.8  # of a whole round, in a clip
_JOLT = 0.05, 0.08  # of a picture's side, to either side: how far an emoji shakes
_JOLTS = 8  # in a clip
_SMALL, _LARGE = 0.36, 0.66  # sides of the drawing in shares of the picture's
_ROOM = 1.5  # sides of a square in which a drawing can be turned, of the drawing's
_BACKGROUND = 9
_MOTION = 7 + _BACKGROUND  # draws: event, speed, sign, start, background
_LABELS = "category", "subcategory", "topic"
_SALT = 0xC11B5  # of the motion that a row has when chance does not decide


@functools.partial(checked, where="data.emoji_clips")
def emoji_clips(
    *,
    frames: Annotated[int, Range(4, 2048)] = 8,
    image_size: Annotated[int, Range(16, 2**14)] = 32,
    seconds: Utterance = 2.0,
    text: str = "name",
    units: str = "pieces",
    text_length: ShortText = 16,
    styles: str | Sequence[str] = STYLES,
    augment: bool = True,
    seed: Natural = 0,
    data_dir: str | None = None,
    tokenizers: Tokenizers = None,
) -> Source:
    """Short clips of one emoji in motion, with its name and its name spoken.

    The drawings are real, the speech is synthetic (see the emoji's card), the motion is made up.
    Targets: `event`, one of 8 kinds of motion; `category` (9) and `subcategory` of the emoji;
    `topic`, ten: the categories, with the vehicles of "Travel & Places" apart; `where`, a box tight
    around the emoji in the last frame (around the larger part where the frame's edge cuts it).

    The event is in the motion alone. Position, size and angle go round (what leaves on the right
    comes in on the left, what has grown largest is smallest again) and begin anywhere with equal
    probability, so each frame by itself has the same distribution whatever the event, and name and
    speech know nothing of it. `left`, `right`, `up`, `down`, `grow`, `shrink` and `spin` (either
    way round) go 0.5 to 0.8 of a round in a clip at constant speed; `shake` jumps from side to side
    by 0.1 to 0.16 of the picture, eight times in a clip.

    A row is a concept in one drawing style, as in `emoji`, with the same splits by concept.
    Training rows get a new event, path, background and wording in every epoch; those of validation
    and test keep theirs, whatever the seed.

    Costs no download; frames are drawn while training. Use it: for video, where motion decides.
    Not: for natural video.

    Args:
        frames: of a clip, 4 or more; the rate is `frames / seconds`.
        image_size: side of the pictures, float32 in -1..1, on a plain or graded background.
        seconds: length of the clip and of the audio.
        text: "name", or "name+keywords".
        units: what a token of the text is: "pieces" of words, as in `emoji`, or whole "words",
            lower-cased and split at spaces.
        text_length: tokens, longer texts are cut.
        styles: which drawings, of "noto" and "twemoji".
        augment: whether training batches are made anew in every epoch.
        seed: of shuffling and of the training clips.
        data_dir: where the prepared data are kept; `$MTMM_JAX_DATA` or `~/.cache/mtmm_jax`.
        tokenizers: given by `data.build`; that of "text" comes before `units`.
    """
    where = "data.emoji_clips"
    choose(text, TEXTS, f"{where}.text")
    choose(units, UNITS, f"{where}.units")
    styles = check_styles(styles, where)
    table = _with_topics(load(data_dir))
    # What is drawn with fewer pixels than the half-size copy has is drawn from that copy.
    half = image_size * _LARGE <= TILE / 2
    drawings = {s: halve(table.drawings[s]) if half else table.drawings[s] for s in styles}
    own = (tokenizers or {}).get("text")
    if own is None and units == "words":
        own = _words(table, text)
    telling = Telling.of(table, text, seconds, text_length, own=own)
    spec = _spec(telling, frames, image_size, frames / seconds)
    moving = dataclasses.replace(table, drawings=drawings)
    compose = functools.partial(_compose, moving, telling, styles, frames, image_size)
    return Source(
        name="emoji_clips",
        spec=spec,
        rows=concept_rows(table, styles),
        compose=compose,
        draws=_MOTION + telling.draws,
        assets=telling.assets,
        describe=lambda id: table.names[id],
        picture=functools.partial(picture, table),
        augment=augment,
        seed=seed,
    )


def paths(chance: np.ndarray, frames: int) -> tuple[np.ndarray, np.ndarray]:
    """The events `[B]`, and the places on the ring `[B, T, 4]` in 0..1, for 7 draws a clip."""
    event = (chance[:, 0] * len(EVENTS)).astype(np.int32)
    sign = np.where(_SIGNS[event] == 0, np.where(chance[:, 2] < 0.5, -1, 1), _SIGNS[event])
    at = np.arange(frames)
    steady = between(chance[:, 1, None], _SLOW, _FAST) * at / (frames - 1)
    side = np.where(at * min(_JOLTS, frames) // frames % 2, 1, -1)
    jolts = between(chance[:, 1, None], *_JOLT) * side
    shaken = (event == list(EVENTS).index("shake"))[:, None]
    change = sign[:, None] * np.where(shaken, jolts, steady)
    ring = np.repeat(chance[:, None, 3:7], frames, axis=1)
    ring[np.arange(len(chance)), :, _DIRECTIONS[event]] += change
    return event, ring % 1


def turn(planes: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """Premultiplied uint8 `[N, 4, s, s]`, turned clockwise by `[N]` radians about its middle.

    On a square of 1.5 s, `[N, 4, 1.5 s, 1.5 s]`, so that nothing is lost; between pixels,
    bilinear.
    """
    number, source = len(planes), planes.shape[2]
    size = round(source * _ROOM)
    padded = np.zeros((number, source + 2, source + 2, 4), np.uint8)  # a transparent rim
    padded[:, 1:-1, 1:-1] = np.moveaxis(planes, 1, -1)
    pixels = padded.view(np.uint32).reshape(number, -1)  # four channels are fetched as one number
    at = np.arange(size, dtype=np.float32) - np.float32((size - 1) / 2)
    cos, sin = (f(angle.astype(np.float32))[:, None, None] for f in (np.cos, np.sin))
    middle = np.float32((source + 1) / 2)
    y = np.clip(cos * at[:, None] - sin * at + middle, 0, np.float32(source + 0.999))
    x = np.clip(sin * at[:, None] + cos * at + middle, 0, np.float32(source + 0.999))
    top, left = y.astype(np.int32), x.astype(np.int32)
    below, right = y - top, x - left
    corner = (top * (source + 2) + left).reshape(number, -1)
    out = np.full((number, size, size, 4), 0.5, np.float32)  # so that cutting off rounds
    for offset, weight in (
        (0, (1 - below) * (1 - right)),
        (1, (1 - below) * right),
        (source + 2, below * (1 - right)),
        (source + 3, below * right),
    ):
        seen = np.take_along_axis(pixels, corner + offset, 1).view(np.uint8)
        out += seen.reshape(out.shape) * weight[..., None]
    return np.ascontiguousarray(np.moveaxis(out.astype(np.uint8), -1, 1))


def film(planes: np.ndarray, ring: np.ndarray, size: int, colours: np.ndarray) -> np.ndarray:
    """`[B, T, size, size, 3]` in -1..1: drawings `[B, 4, s, s]` along paths `[B, T, 4]`.

    Args:
        planes: premultiplied uint8.
        ring: places as of `paths`.
        size: of the frames.
        colours: `[B, 9]` chance of the backgrounds.
    """
    count, frames = ring.shape[:2]
    angle = ring[..., _ANGLE]
    turning = (angle != angle[:, :1]).any(1)
    # Only where the angle changes does a frame need a turned drawing of its own.
    clip, frame = np.nonzero(turning[:, None] | (np.arange(frames) == 0))
    turned = turn(planes[clip], 2 * np.pi * angle[clip, frame])
    which = np.zeros((count, frames), int)
    which[clip, frame] = np.arange(len(clip))
    which = np.where(turning[:, None], which, which[:, :1]).ravel()
    scale = _ROOM * _SMALL * (_LARGE / _SMALL) ** ring[..., _SIZE].ravel()
    rows, columns = (
        _ring_matrix(turned.shape[2], size, scale, ring[..., direction].ravel() - 0.5)
        for direction in (_DOWN, _ACROSS)
    )
    seen = images.view(turned[which], rows, columns).reshape(count, frames, 4, size, size)
    behind = background(size, colours)[:, None]
    seen = seen[:, :, :3] + (1 - seen[:, :, 3:]) * behind
    shown = images.normalise(np.clip(seen, 0, 1).reshape(-1, 3, size, size))
    return shown.reshape(count, frames, size, size, 3)


def places(planes: np.ndarray, ring: np.ndarray) -> np.ndarray:
    """`[B, 4]` boxes (y0, x0, y1, x1 in 0..1) of drawings `[B, 4, s, s]` at one place `[B, 4]`.

    Tight around what is visible. What the frame's edge cuts is in two parts, and the larger counts.
    """
    seen = turn(planes, 2 * np.pi * ring[:, _ANGLE])[:, 3] >= 255 * VISIBLE
    scale = _ROOM * _SMALL * (_LARGE / _SMALL) ** ring[:, _SIZE]
    edges = []
    for direction, visible in ((_DOWN, seen.any(2)), (_ACROSS, seen.any(1))):
        size = visible.shape[1]
        own = np.stack([visible.argmax(1), size - visible[:, ::-1].argmax(1)], 1) / size - 0.5
        own = own * scale[:, None] + ring[:, direction, None]
        parts = np.clip(own[:, None] + np.array([-1, 0, 1])[:, None], 0, 1)
        larger = np.diff(parts)[..., 0].argmax(1)
        edges.append(parts[np.arange(len(own)), larger])
    return np.stack(edges, 1).transpose(0, 2, 1).reshape(-1, 4).astype(np.float32)


def _words(table: Emoji, text: str) -> str:
    """A tokenizer of the words that training texts have."""
    more = table.keywords if text == "name+keywords" else [()] * len(table.names)
    rows = zip(table.names, more, table.split, strict=True)
    return train_words([" ".join([name, *k]) for name, k, s in rows if s == "train"], VOCABULARY)


def _with_topics(table: Emoji) -> Emoji:
    """With ten more classes: the nine categories, and the vehicles of one of them."""
    wide, fine = table.classes["category"], table.classes["subcategory"]
    topic = table.labels["category"].copy()
    vehicle = [name in ("transport-ground", "transport-water", "transport-air") for name in fine]
    topic[np.array(vehicle)[table.labels["subcategory"]]] = len(wide)
    classes = {**table.classes, "topic": (*wide, "Vehicles")}
    return dataclasses.replace(table, classes=classes, labels={**table.labels, "topic": topic})


def _ring_matrix(source: int, size: int, scale: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """As `images.resize_matrix`, but what leaves the frame on one side comes in on the other."""
    again = np.where(shift < 0, shift + 1, shift - 1)
    return images.resize_matrix(source, size, scale, shift) + images.resize_matrix(
        source, size, scale, again
    )


def _spec(telling: Telling, frames: int, size: int, rate: float) -> Spec:
    table = telling.table
    train = table.split == "train"
    even = (1 / len(EVENTS),) * len(EVENTS)
    targets = {"event": Target("class", classes=tuple(EVENTS), frequencies=even)}
    for name in _LABELS:
        classes = table.classes[name]
        counts = np.bincount(table.labels[name][train], minlength=len(classes))
        frequencies = tuple((counts / counts.sum()).tolist())
        targets[name] = Target("class", classes=tuple(classes), frequencies=frequencies)
    targets["where"] = Target("boxes", classes=("emoji",), frequencies=(1.0,), length=1)
    video = Modality("video", (frames, size, size, 3), "float32", rate=rate)
    return Spec({"video": video, **telling.modalities}, targets)


def _compose(
    table: Emoji,
    telling: Telling,
    styles: tuple[str, ...],
    frames: int,
    size: int,
    rows: np.ndarray,
    chance: np.ndarray | None,
) -> Batch:
    concept, style, planes = draw(table, styles, rows)
    if chance is None:
        motion, rest = uniform(_MOTION, _SALT, rows), None
    else:
        motion, rest = np.split(chance, [_MOTION], axis=1)
    event, ring = paths(motion[:, :-_BACKGROUND], frames)
    text, _ = telling(concept, np.array([STYLES.index(s) for s in styles])[style], rest)
    present = np.ones(len(rows), bool)
    video = film(planes, ring, size, motion[:, -_BACKGROUND:])
    labels = {"event": event} | {name: table.labels[name][concept] for name in _LABELS}
    labels["where"] = {
        "boxes": places(planes, ring[:, -1])[:, None],
        "classes": np.zeros((len(rows), 1), np.int32),
        "valid": np.ones((len(rows), 1), bool),
    }
    return {
        "inputs": {"video": {"x": video, "present": present}, **text},
        "targets": {name: {"y": y, "present": present} for name, y in labels.items()},
        "id": concept.astype(np.int32),
    }
