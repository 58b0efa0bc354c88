"""Text, `[tokens]` of ids with a mask."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import numpy as np

from mtmm_jax.chance import below
from mtmm_jax.markup import escape
from mtmm_jax.modalities.columns import Column, Input, one_present
from mtmm_jax.modalities.corruption import ABSENT, SHARES, Corruption, Entry, Place, kept, mask_of
from mtmm_jax.modalities.kind import ModalityKind
from mtmm_jax.modalities.modality import Modality
from mtmm_jax.modalities.shown import Example
from mtmm_jax.modalities.units import Parts, Units
from mtmm_jax.ranges import Size, TextLength
from mtmm_jax.readers.cells import Attempt, Setting, words
from mtmm_jax.readers.files import check_path
from mtmm_jax.readers.limits import Unreadable
from mtmm_jax.readers.texts import decode_text
from mtmm_jax.registry import ConfigError, choose
from mtmm_jax.text import UNITS, encode_present, read_tokenizer

_FIRST_WORD = 2  # ids below are padding and the unknown word


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextColumn(Column):
    """A text of at most `length` tokens, in the column or in the file that it names (`from`).

    All texts of a manifest share one tokenizer of at most `vocabulary` entries. Its `units` are
    "pieces" of words, or whole "words", lower-cased and split at spaces. A text whose encoder is
    `pretrained` has the tokenizer of its weights instead.
    """

    length: TextLength = 32
    vocabulary: Size = 2000
    units: str = "pieces"
    origin: str = "column"

    tokenized: ClassVar[bool] = True

    def __post_init__(self) -> None:
        choose(self.units, UNITS, f"{self.where}.units")
        choose(self.origin, ("column", "file"), f"{self.where}.from", "place")

    def parse(self, setting: Setting) -> list[str | None]:
        parse = check_path if self.origin == "file" else words(setting.limits)
        return setting.cells(self.at, self.where, parse)

    def describe(self, cell: str | None) -> str:
        return (cell or "") if self.origin == "column" else ""

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
            whole = encode_present(tokenizer, [text or "" for text in cells], self.length)

        def batch(rows: np.ndarray, chance: Any, attempt: Attempt) -> Any:
            if whole is not None:
                ids, mask = (table[rows] for table in whole)
                return {"x": ids, "mask": mask, "present": mask.any(1)}, []
            found = attempt(self.at, cells, lambda name, _: read_text(setting, name))
            texts = ["" if text is None else text for text in found]
            ids, mask = encode_present(tokenizer, texts, self.length)
            return {"x": ids, "mask": mask, "present": mask.any(1)}, []

        size = tokenizer.get_vocab_size()
        modality = Modality("text", (self.length,), "int32", vocabulary=size)
        return Input(modality, batch, assets={"tokenizer.json": tokenizer_json.encode()})


def read_text(setting: Setting, name: str) -> str:
    return decode_text(setting.folder.read(name, "text_bytes"), setting.limits)


def encode_text(text: str, modality: Modality, tokenizer_json: str | bytes) -> dict[str, Any]:
    """`x` is `[1, tokens]` int32 with its `mask`; `tokenizer_json` is the source's asset."""
    ids, mask = encode_present(read_tokenizer(tokenizer_json), [text], modality.shape[0])
    if not mask.any():
        raise ConfigError(f"text: {text!r} has no word in it; wanted a name or a description")
    return {**one_present(ids), "mask": mask}


def token_units(parts: Parts, positions: Any, x: Any, modality: Modality) -> Any:
    """Words have no values between them: the path is one between tokens, each of its own word."""
    del positions, x, modality
    return parts.units


def _fewer_words(entry: Entry, place: Place, level: float) -> Entry:
    """Words left out; the others move up."""
    left = kept(entry, place, level, "fewer")
    order = np.argsort(~left, axis=1, kind="stable")
    mask = np.take_along_axis(left, order, 1)
    return {**entry, "x": np.take_along_axis(np.asarray(entry["x"]), order, 1) * mask, "mask": mask}


def _other_words(entry: Entry, place: Place, level: float) -> Entry:
    """Words replaced by any of the vocabulary."""
    mask, x = mask_of(entry), np.asarray(entry["x"])
    first = min(_FIRST_WORD, place.modality.vocabulary - 1)
    drawn = first + below(place.uniform("words", x.shape[1]), place.modality.vocabulary - first)
    return {**entry, "x": np.where(mask & (place.uniform("other", x.shape[1]) < level), drawn, x)}


def show(example: Example) -> str:
    ids = example.real
    return f"<div title='{len(ids)} tokens'>{escape(example.decode(ids))}</div>"


TEXT = ModalityKind(
    "text",
    dimensions=1,
    mask="always",
    column=TextColumn,
    options=lambda modality, given: {"length": modality.shape[0]},
    read=lambda value, kept: encode_text(value, kept.modality, kept.tokenizer()),
    files=False,
    endings=(".txt",),
    encoder="text_gru",
    fixed="text_ngrams",
    guess=lambda contents: {"from": "file"},
    units=Units(path=token_units, words=True),
    corruptions={
        "missing words": Corruption(SHARES, "share of the words", _fewer_words),
        "other words": Corruption(SHARES, "share of the words", _other_words),
        "absent": ABSENT,
    },
    show=show,
)
