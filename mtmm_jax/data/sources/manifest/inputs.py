"""`INPUTS`: what a manifest's columns can be read as, and how a batch of them is made."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from mtmm_jax.batch import Modality
from mtmm_jax.data.readers import audio, decode_text, video
from mtmm_jax.data.readers.clips import View, decode_animation, decode_folder, stack_clips
from mtmm_jax.data.readers.pictures import decode_image, stack_images
from mtmm_jax.data.readers.sounds import RATES, decode_audio
from mtmm_jax.data.sources.manifest.files import Folder, check_path
from mtmm_jax.data.sources.manifest.setting import Input, Setting
from mtmm_jax.data.sources.manifest.table import TableInput
from mtmm_jax.readers.cells import Attempt, positive, whole, words
from mtmm_jax.readers.limits import Limits, Unreadable
from mtmm_jax.registry import ConfigError, choose
from mtmm_jax.text import UNITS, encode_with_mask, read_tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Column:
    """Options that all have: `column` is called as the modality by default."""

    own: str
    where: str
    column: str | None = None

    @property
    def at(self) -> str:
        return self.column or self.own

    def parse(self, setting: Setting) -> list[str | None]:
        return setting.cells(self.at, self.where, check_path)


def _present(decoded: Sequence[Any]) -> np.ndarray:
    return np.array([value is not None for value in decoded], bool)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageInput(_Column):
    """A picture, centred on a white square of `size` pixels."""

    size: int = 64

    def __post_init__(self) -> None:
        whole(self.where, size=self.size)

    def fit(self, cells: list[str | None], setting: Setting, *_: Any) -> Input:
        folder, limits, size = setting.folder, setting.limits, self.size

        def batch(rows: np.ndarray, chance: Any, attempt: Attempt) -> Any:
            def decode(name: str, _: int) -> Any:
                return decode_image(folder.read(name), size, limits)

            found = attempt(self.at, cells, decode)
            x = stack_images([None if one is None else one.pixels for one in found], size)
            return {"x": x, "present": _present(found)}, found

        return Input(Modality("image", (size, size, 3), "float32"), batch)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AudioInput(_Column):
    """A recording: mono, at `rate`, without silence around it, `seconds` long.

    What is longer is cut; `random` takes any stretch of it in training, not only the first.
    """

    rate: int = 16000
    seconds: float = 2.0
    random: bool = False

    def __post_init__(self) -> None:
        whole(self.where, rate=self.rate)
        positive(self.where, seconds=self.seconds)
        if not RATES[0] <= self.rate <= RATES[1]:
            raise ConfigError(f"{self.where}.rate: {self.rate} is not in {RATES[0]}..{RATES[1]}")

    def fit(self, cells: list[str | None], setting: Setting, *_: Any) -> Input:
        folder, limits = setting.folder, setting.limits
        rate, length = self.rate, max(1, round(self.seconds * self.rate))

        def batch(rows: np.ndarray, chance: np.ndarray | None, attempt: Attempt) -> Any:
            def decode(name: str, i: int) -> np.ndarray:
                wave = decode_audio(folder.read(name), rate, limits)
                room = len(wave) - length
                if chance is None or room <= 0 or not self.random:
                    return wave
                start = int(chance[i, 0] * (room + 1))
                return wave[start : start + length]

            found = attempt(self.at, cells, decode)
            silence = np.zeros(0, np.float32)
            x = audio.fit([silence if wave is None else wave for wave in found], length)
            return {"x": x, "present": _present(found)}, found

        modality = Modality("audio", (length,), "float32", rate=float(rate))
        return Input(modality, batch, draws=int(self.random))


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoInput(_Column):
    """A folder of numbered frames, a GIF or an animated WebP, seen as `frames` pictures.

    Args:
        sample: "uniform" (spread over the clip), "centre" (about its middle) or "rate" (from a
            random start in training, about the middle in evaluation).
        rate: frames a second that are seen by "centre" and "rate"; the clip's usual 25 by default.
        folder_rate: frames a second in folders of frames.
    """

    frames: int = 8
    size: int = 32
    sample: str = "uniform"
    rate: float | None = None
    folder_rate: float = video.RATE

    def __post_init__(self) -> None:
        whole(self.where, frames=self.frames, size=self.size)
        positive(self.where, folder_rate=self.folder_rate)
        choose(self.sample, video.SAMPLINGS, f"{self.where}.sample", "sampling")
        if self.rate is not None:
            positive(self.where, rate=self.rate)
            if self.sample == "uniform":
                raise ConfigError(f"{self.where}.rate: uniform sampling has no rate of its own")

    def fit(self, cells: list[str | None], setting: Setting, *_: Any) -> Input:
        folder, limits = setting.folder, setting.limits
        rate = None if self.sample == "uniform" else float(self.rate or video.RATE)
        view = View(self.frames, self.size, self.sample, rate or video.RATE, self.folder_rate)

        def batch(rows: np.ndarray, chance: np.ndarray | None, attempt: Attempt) -> Any:
            def decode(name: str, i: int) -> list[np.ndarray]:
                jitter = None if chance is None or not chance.shape[1] else float(chance[i, 0])
                return read_clip(name, folder, view, limits, jitter)

            found = attempt(self.at, cells, decode)
            x, mask = stack_clips(found, self.frames, self.size)
            return {"x": x, "mask": mask, "present": _present(found)}, found

        shape = (self.frames, self.size, self.size, 3)
        modality = Modality("video", shape, "float32", rate=rate)
        return Input(modality, batch, draws=int(self.sample != "centre"))


def read_clip(
    name: str, folder: Folder, view: View, limits: Limits, chance: float | None
) -> list[np.ndarray]:
    """The frames that are seen of a clip in a folder of frames or in a file."""
    if not folder.is_folder(name):
        return decode_animation(folder.read(name), view, limits, chance)
    read = functools.partial(_frame, folder, name.rstrip("/"))
    return decode_folder(folder.names(name), read, view, limits, chance)


def _frame(folder: Folder, name: str, frame: str) -> bytes:
    return folder.read(f"{name}/{frame}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextInput(_Column):
    """A text of at most `length` tokens, in the column or in the file that it names (`from`).

    All texts of a manifest share one tokenizer of at most `vocabulary` entries. Its `units` are
    "pieces" of words, or whole "words", lower-cased and split at spaces.
    """

    length: int = 32
    vocabulary: int = 2000
    units: str = "pieces"
    origin: str = "column"

    def __post_init__(self) -> None:
        whole(self.where, length=self.length, vocabulary=self.vocabulary)
        choose(self.units, UNITS, f"{self.where}.units")
        choose(self.origin, ("column", "file"), f"{self.where}.from", "place")

    def parse(self, setting: Setting) -> list[str | None]:
        parse = check_path if self.origin == "file" else words(setting.limits)
        return setting.cells(self.at, self.where, parse)

    def texts(self, cells: list[str | None], setting: Setting, train: np.ndarray) -> list[str]:
        """Of the train split, for the tokenizer."""
        if self.origin == "column":
            return setting.some(self.at, cells, train)
        found = []
        for row in train:
            try:
                if cells[row] is not None:
                    found.append(read_text(setting, cells[row]))
            except Unreadable as error:
                setting.bad.row(int(row), self.at, cells[row], error)
        return found

    def fit(self, cells: list[str | None], setting: Setting, _: Any, tokenizer_json: str) -> Input:
        tokenizer = read_tokenizer(tokenizer_json)
        whole = None
        if self.origin == "column":
            whole = encode_with_mask(tokenizer, [text or "" for text in cells], self.length)

        def batch(rows: np.ndarray, chance: Any, attempt: Attempt) -> Any:
            if whole is not None:
                ids, mask = (table[rows] for table in whole)
                return {"x": ids, "mask": mask, "present": mask.any(1)}, []
            found = attempt(self.at, cells, lambda name, _: read_text(setting, name))
            texts = ["" if text is None else text for text in found]
            ids, mask = encode_with_mask(tokenizer, texts, self.length)
            return {"x": ids, "mask": mask, "present": mask.any(1)}, []

        size = tokenizer.get_vocab_size()
        modality = Modality("text", (self.length,), "int32", vocabulary=size)
        return Input(modality, batch, assets={"tokenizer.json": tokenizer_json.encode()})


def read_text(setting: Setting, name: str) -> str:
    return decode_text(setting.folder.read(name, "text_bytes"), setting.limits)


INPUTS = {
    "image": ImageInput,
    "audio": AudioInput,
    "video": VideoInput,
    "text": TextInput,
    "table": TableInput,
}
