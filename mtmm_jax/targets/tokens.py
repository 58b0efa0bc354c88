"""A text as ids of characters or of pieces of words."""

from __future__ import annotations

import dataclasses

import numpy as np

from mtmm_jax.markup import escape
from mtmm_jax.ranges import Size
from mtmm_jax.readers.cells import Setting, words
from mtmm_jax.targets.column import Column, Label
from mtmm_jax.targets.kind import Count, TargetKind, Words, blank
from mtmm_jax.targets.target import Target
from mtmm_jax.text import encode_with_mask, read_tokenizer, train_characters, train_tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokensColumn(Column):
    """A text to be recognised, as characters, or as pieces where `vocabulary` is given.

    The names of the tokens are the target's classes; 0 is the end, and CTC's blank. Characters are
    taken as they are. `length` is by default the longest text's; one that is longer is a bad row,
    as a label must not be cut.
    """

    length: Size | None = None
    vocabulary: Size | None = None

    def parse(self, setting: Setting) -> list[str | None]:
        return setting.cells(self.at, self.where, words(setting.limits))

    def fit(self, cells: list[str | None], setting: Setting, train: np.ndarray) -> Label:
        found = setting.some(self.at, cells, train) or ["-"]
        if self.vocabulary is None:
            kept = train_characters(found if any(found) else ["-"])
        else:
            kept = train_tokenizer(found, self.vocabulary)
        tokenizer = read_tokenizer(kept)
        y, mask = encode_with_mask(tokenizer, [text or "" for text in cells], None)
        lengths = mask.sum(1)
        if self.length is not None:
            for row in np.flatnonzero(lengths > self.length).tolist():
                reason = f"has {lengths[row]} tokens; there is room for {self.length}"
                setting.bad.row(row, self.at, cells[row], reason)
            y = np.pad(y[:, : self.length], ((0, 0), (0, max(0, self.length - y.shape[1]))))
        size = tokenizer.get_vocab_size()
        target = Target(
            self.kind,
            classes=tuple(tokenizer.id_to_token(i) for i in range(size)),
            made_from=tuple(self.made_from),
            length=y.shape[1],
        )
        known = np.array([cell is not None for cell in cells], bool)
        assets = {f"{self.own}_tokenizer.json": kept.encode()}
        return Label(target, y, known, assets=assets)


def html(target: Target, y: np.ndarray, words: Words) -> str:
    """The text; spelt by the names of the tokens where they have names."""
    return escape(_spelt(target, y) if target.classes else words(y[y != 0]))


def _spelt(target: Target, ids: np.ndarray) -> str:
    """Characters or pieces of words joined, 0 left out; a low block begins a word."""
    text = "".join(target.classes[i] for i in ids if i)
    return text.replace("\N{LOWER ONE EIGHTH BLOCK}", " ").strip()


TOKENS = TargetKind(
    blank=blank(np.int32, lambda target: (target.length,)),
    count=Count(lambda target, y: (y != 0).sum(1)),
    column=TokensColumn,
    html=html,
    wide=True,
)
