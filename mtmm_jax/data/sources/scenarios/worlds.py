"""The worlds of `scenarios`: latent events of a row, the sensors that see them, the labels.

Each is a function of a `Lot`, the chance of some rows.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from mtmm_jax.batch import Modality, Target
from mtmm_jax.data.sources.scenarios import parts
from mtmm_jax.data.sources.scenarios.parts import RATE, Lot

_PICTURE = 32
_STEPS = 16  # of series, over `_SECONDS`
_SECONDS = 4.0
_TIME = np.linspace(0, 1, _STEPS)


class World(NamedTuple):
    """Some rows of a scenario: inputs and targets, `{name: (what it is, values)}`."""

    inputs: dict[str, tuple[Modality, np.ndarray]]
    targets: dict[str, tuple[Target, Any]]


def _image(x: np.ndarray) -> tuple[Modality, np.ndarray]:
    return Modality("image", x.shape[1:], "float32"), x


def _audio(x: np.ndarray, rate: float = RATE) -> tuple[Modality, np.ndarray]:
    return Modality("audio", x.shape[1:], "float32", rate=float(rate)), x


def _series(x: np.ndarray) -> tuple[Modality, np.ndarray]:
    return Modality("series", x.shape[1:], "float32", rate=_STEPS / _SECONDS), x


def _table(x: np.ndarray) -> tuple[Modality, np.ndarray]:
    return Modality("table", x.shape[1:], "float32"), x


def _class(names: Sequence[str], y: np.ndarray) -> tuple[Target, np.ndarray]:
    return Target("class", classes=tuple(names)), y.astype(np.int32)


def _number(y: np.ndarray) -> tuple[Target, np.ndarray]:
    return Target("number"), y.astype(np.float32)


def _boxes(
    names: Sequence[str], where: np.ndarray, kinds: np.ndarray, valid: np.ndarray
) -> tuple[Target, dict[str, np.ndarray]]:
    order = np.argsort(~valid, axis=1, kind="stable")  # slots that hold a box come first
    taken = functools.partial(np.take_along_axis, indices=order, axis=1)
    valid, kinds = taken(valid), taken(kinds)
    where = np.take_along_axis(where, order[..., None], 1)
    return Target("boxes", classes=tuple(names), length=valid.shape[1]), {
        "boxes": np.where(valid[..., None], where, 0).astype(np.float32),
        "classes": np.where(valid, kinds, 0).astype(np.int32),
        "valid": valid,
    }


def _said(words: Sequence[str], ids: np.ndarray) -> tuple[Target, np.ndarray]:
    classes = ("[blank]", *("\u2581" + word for word in words))
    return Target("tokens", classes=classes, length=ids.shape[1]), ids.astype(np.int32)


def driving(lot: Lot) -> World:
    """A camera, the range to what is ahead over time, and a spoken command."""
    command, kinds = lot.pick(4), lot.pick(3, 3)
    where, shown = parts.squares(lot, 3, 0.15, 0.3), lot.number(3) < 0.6
    gap, closing = lot.number(low=0.3, high=1.0), lot.number(low=-0.2, high=0.5)
    ahead = gap[:, None] - closing[:, None] * _TIME
    near = ahead[:, -1] < 0.35
    behaviour = np.where(command == 3, 3, np.where(near, 2, np.where(command == 1, 0, 1)))
    speed = np.where(behaviour == 3, 0.1, np.where(behaviour == 2, 0.4, 1.0))
    turn = np.array([-1.0, 0.0, 1.0, 0.0])[command]
    at = np.arange(1, 7) / 6
    path = np.stack([speed[:, None] * at, (turn * speed)[:, None] * at**2], -1).astype(np.float32)
    valid = np.ones(path.shape[:2], bool)
    return World(
        {
            "camera": _image(parts.things(lot, _PICTURE, where, kinds, shown)),
            "range": _series(lot.noisy(np.stack([ahead, np.gradient(ahead, axis=1)], -1), 0.1)),
            "voice": _audio(parts.tones(lot, 250.0 * 1.4 ** command[:, None], 0.3)),
        },
        {
            "objects": _boxes(("car", "person", "sign"), where, kinds, shown),
            "command": _class(("left", "straight", "right", "stop"), command),
            "waypoints": (
                Target("path", shape=(6, 2)),
                {"points": path.astype(np.float32), "valid": valid},
            ),
            "behaviour": _class(("keep", "turn", "brake", "stop"), behaviour),
            "control": _number(speed - gap),
        },
    )


def medical(lot: Lot) -> World:
    """A picture, a patient's record and the activity of 64 genes."""
    size, tissue = lot.number(low=0.2, high=0.7), lot.pick(2)
    age, marker = lot.number(), lot.number(2)
    active = lot.number(8)
    spot = 0.5 + np.stack([-size, -size, size, size], -1)[:, None] / 2
    large, old, sensitive = size > 0.45, age > 0.5, active[:, :2].sum(1) > 1
    diagnosis = 2 * large + (old ^ (tissue == 1))
    treatment = np.where(diagnosis == 0, 0, np.where(sensitive, 1, 2))
    # Every gene follows one of eight activities, with a sign.
    genes = (2 * active - 1)[:, np.arange(64) % 8] * np.where(np.arange(64) // 8 % 2, 1, -1)
    return World(
        {
            "image": _image(parts.things(lot, _PICTURE, spot, 4 + tissue[:, None])),
            "record": _table(lot.noisy(2 * np.c_[age, marker] - 1, 0.3)),
            "genes": _table(lot.noisy(genes, 2.0)),
        },
        {
            "diagnosis": _class(("none", "early", "benign", "grave"), diagnosis),
            "treatment": _class(("wait", "drug", "surgery"), treatment),
        },
    )


WORDS = ("light", "heat", "music", "door", "on", "off", "please", "now")
REPLIES = ("done", "turning", "on", "off", "light", "heat", "music", "door")


def service(lot: Lot) -> World:
    """A caller's four words, of which the first is a thing and the third what to do with it."""
    thing, what = lot.pick(4), lot.pick(2)
    words = np.stack([thing, 6 + lot.pick(2), 4 + what, 6 + lot.pick(2)], 1)
    reply = np.stack([np.full(lot.rows, 1), 2 + what, 4 + thing], 1)
    intents = tuple(f"{WORDS[i // 2]} {WORDS[4 + i % 2]}" for i in range(8))
    return World(
        {"speech": _audio(parts.tones(lot, _pitch(lot, words, 1.0), 0.2))},
        {
            "transcript": _said(WORDS, words + 1),
            "intent": _class(intents, 2 * thing + what),
            "reply": _said(REPLIES, reply + 1),
        },
    )


def _pitch(lot: Lot, words: np.ndarray, voice: Any) -> np.ndarray:
    """Hz: a semitone and a half a word, times the voice, never twice quite the same."""
    return 200.0 * voice * 1.15 ** (words + lot.number(words.shape[1], low=-0.2, high=0.2))


def home(lot: Lot) -> World:
    """A spoken wish; a camera and four sensors know the rest."""
    speaker, command = lot.pick(3), lot.pick(4)
    heat, light = lot.number(low=-1.0), lot.number(low=-1.0)
    voice = np.array([1.0, 1.07, 1.14])[speaker][:, None]  # less than a word's step: ambiguous
    sensors = np.stack(
        [heat[:, None] + 0 * _TIME, light[:, None] * np.sin(np.pi * _TIME), _TIME - heat[:, None]],
        -1,
    )
    who = parts.squares(lot, 1, 0.4, 0.6)
    liked = np.array([0.5, 0.0, -0.5])[speaker] - heat * np.array([1.0, 0.5, 0.2])[speaker]
    return World(
        {
            "voice": _audio(parts.tones(lot, _pitch(lot, command[:, None], voice), 0.3)),
            "image": _image(parts.things(lot, _PICTURE, who, 4 + speaker[:, None])),
            "sensors": _series(lot.noisy(sensors, 0.5)),
        },
        {
            "command": _class(WORDS[:4], command),
            "speaker": _class(("ada", "ben", "cleo"), speaker),
            "preference": _number(liked),
        },
    )


def traffic(lot: Lot) -> World:
    """A camera over a road, the radar's speeds, and counters in the road's surface."""
    kinds, shown = lot.pick(2, 4), lot.number(4) < 0.6
    where = parts.squares(lot, 4, 0.12, 0.22)
    speed, drop = lot.number(low=0.3), lot.number() < 0.4
    seen = shown.sum(1)
    radar = speed[:, None] * np.where(drop[:, None] & (_TIME > 0.5), 0.2, 1.0)
    count = lot.number(low=0.0, high=2.0)
    sensors = np.stack([(seen + count)[:, None] + 0 * radar, radar], -1)
    return World(
        {
            "camera": _image(parts.things(lot, _PICTURE, where, kinds, shown)),
            "radar": _series(lot.noisy(radar[..., None], 0.2)),
            "sensors": _series(lot.noisy(sensors, 0.5)),
        },
        {
            "vehicles": _boxes(("car", "lorry"), where, kinds, shown),
            "flow": _number((seen + count) * radar.mean(1)),
            # A sudden stop on an empty road is none.
            "accident": _class(("no", "yes"), drop & (seen >= 2)),
        },
    )


def video(lot: Lot) -> World:
    """A clip of eight seconds; each has a frame of a moving thing, a tone and a word."""
    topic, mood = lot.pick(4), lot.pick(2)
    seconds = np.arange(8)
    start, pace = parts.squares(lot, 1, 0.25, 0.35), lot.number(2, low=-0.3, high=0.3)
    middle = start[:, 0, :2] + pace + 0.15
    way = np.where((middle > 0) & (middle < 1), pace, -pace) / seconds[-1]
    moved = start + np.tile(way, 2)[:, None] * seconds[:, None]
    shape = topic + 4 * lot.pick(2)
    film = [parts.things(lot, 24, moved[:, [t]], shape[:, None]) for t in seconds]
    rising = np.where(mood == 1, 1.0, -1.0)[:, None] * np.linspace(-3, 3, len(seconds))
    tokens = np.where(lot.number(8) < 0.5, 1 + topic[:, None], 5 + lot.pick(4, 8))
    words = np.where(lot.number(8) < 0.3, 9 + mood[:, None], tokens).astype(np.int32)
    # The tones are made four times too fast, and played at a quarter of the rate.
    tune = parts.tones(lot, _pitch(lot, rising + 4, 1.0), 0.25)
    score = 0.5 * mood + 0.25 * (topic % 2) + 0.25 * (topic == 3)
    last = np.clip(moved[:, -1:], 0, 1)
    return World(
        {
            "video": (Modality("video", (8, 24, 24, 3), "float32", rate=1.0), np.stack(film, 1)),
            "audio": _audio(tune, RATE / 4),
            "subtitles": (Modality("text", (8,), "int32", vocabulary=11), words),
        },
        {
            "topic": _class(("news", "sport", "music", "comedy"), topic),
            "sentiment": _class(("sad", "happy"), mood),
            "score": _number(score + lot.number(low=-0.05, high=0.05)),
            "where": _boxes(("thing",), last, np.zeros(last.shape[:2], int), last[..., 0] >= 0),
        },
    )


SIGNS = ("stop", "exit", "open", "shut", "taxi", "sale", "free", "post")


def sign(lot: Lot) -> World:
    """A thing with a word written under it; the text is what is written there."""
    thing, word = lot.pick(8), lot.pick(len(SIGNS))
    where = parts.squares(lot, 1, 0.3, 0.5) * [0.55, 1, 0.55, 1]
    picture = parts.things(lot, _PICTURE, where, thing[:, None])
    names = [f"{c} {s}" for s in ("box", "ball") for c in ("red", "green", "blue", "yellow")]
    letters = np.array([[parts.LETTERS.index(c) + 1 for c in name] for name in SIGNS], np.int32)
    seen = lot.noisy(parts.write_on(picture, SIGNS, word, 18), 0.3)
    return World(
        {
            "image": _image(np.clip(seen, -1, 1)),
            "text": (
                Modality("text", (4,), "int32", vocabulary=1 + len(parts.LETTERS)),
                letters[word],
            ),
        },
        {"object": _class(names, thing), "word": _class(SIGNS, word)},
    )


SCENARIOS: dict[str, Callable[[Lot], World]] = {
    "driving": driving,
    "medical": medical,
    "service": service,
    "home": home,
    "traffic": traffic,
    "video": video,
    "sign": sign,
}
