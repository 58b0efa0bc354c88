"""The films as a `Source`: text and a table in, five labels out, each film having some of them."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mtmm_jax.batch import Batch, Modality, Spec
from mtmm_jax.data.pipeline.source import Source
from mtmm_jax.data.sources import packed
from mtmm_jax.data.sources.films.columns import COLUMNS, KNOWN_AT_RELEASE, Films, table
from mtmm_jax.data.sources.films.labels import Label, labels
from mtmm_jax.data.transforms import augment as augmentation
from mtmm_jax.ranges import Natural, ShortText, Size
from mtmm_jax.registry import checked
from mtmm_jax.text import (
    Tokenizers,
    encode_present,
    read_tokenizer,
    train_tokenizer,
    unknown_id,
)

TEXTS = ("title", "director", "writer", "production", "cast")


@functools.partial(checked, where="data.films")
def films(
    *,
    text: str | Sequence[str] = TEXTS,
    text_length: ShortText = 128,
    vocabulary: Size = 8000,
    columns: str | Sequence[str] = KNOWN_AT_RELEASE,
    augment: bool = True,
    seed: Natural = 0,
    data_dir: str | None = None,
    tokenizers: Tokenizers = None,
) -> Source:
    """17,472 films as text and table; genres, critics' marks, film board rating, box office.

    Labels are really missing: a film has those that Wikidata knew. So is the text of a film that
    has none of the chosen fields.

    Costs no download. Use it: for tables and texts with labels that are really missing. Not: to
    compare with published numbers.

    Args:
        text: which fields make up the text, in this order: "title", "director", "writer",
            "production", "cast". The cast is in the order of the alphabet, and the longest: where
            it is not last, others are cut.
        text_length: tokens, longer texts are cut.
        vocabulary: the most entries that the tokenizer may have.
        columns: groups of the table's columns. Known when a film comes out: "year", "runtime",
            "month", "languages", "countries". Known later, so that a forecast may not use them:
            "listed" (how many people and companies Wikidata lists, more for films that are still
            talked about), "reviews" (how many critics wrote), "oscars" (won).
        augment: whether a tenth of the tokens of training batches is made unknown.
        seed: of shuffling and augmentation.
        data_dir: where the prepared data are kept; `$MTMM_JAX_DATA` or `~/.cache/mtmm_jax`.
        tokenizers: given by `data.build`; that of "text" comes in the place of a trained one.
    """
    where = "data.films"
    text = packed.checked(text, TEXTS, f"{where}.text", "field")
    columns = packed.checked(columns, COLUMNS, f"{where}.columns", "column")
    examples = packed.load("films", data_dir)
    known = _fields(examples.rows)
    train = examples.split == "train"
    texts = [_text(row, text) for row in zip(*(known[field] for field in text), strict=True)]
    training = [t for t, use in zip(texts, train, strict=True) if use]
    tokenizer_json = (tokenizers or {}).get("text") or train_tokenizer(training, vocabulary)
    tokenizer = read_tokenizer(tokenizer_json)
    numbers = table(known, columns, train)
    known_labels = labels(known, train)
    return Source(
        name="films",
        spec=Spec(
            modalities={
                "text": Modality(
                    "text", (text_length,), "int32", vocabulary=tokenizer.get_vocab_size()
                ),
                "table": Modality("table", (len(numbers.names),), "float32", names=numbers.names),
            },
            targets={name: label.target for name, label in known_labels.items()},
        ),
        rows=packed.rows_by_split(examples.split),
        compose=functools.partial(
            _compose,
            *encode_present(tokenizer, texts, text_length),
            unknown_id(tokenizer),
            numbers.values,
            known_labels,
        ),
        draws=text_length,
        assets={
            "tokenizer.json": tokenizer_json.encode(),
            "table.json": json.dumps({"names": numbers.names, "scale": numbers.scale}).encode(),
        },
        describe=lambda id: f"{known['title'][id]} ({known['year'][id]})",
        augment=augment,
        seed=seed,
    )


def _fields(rows: Sequence[Mapping[str, Any]]) -> Films:
    def column(field: str) -> np.ndarray:
        values = [row[field] for row in rows]
        if not isinstance(values[0], bytes):
            return np.array(values)
        return np.array([value.decode() for value in values], object)

    return {field: column(field) for field in rows[0]}


def _text(values: Sequence[str], fields: Sequence[str]) -> str:
    """The title, then the other fields that are known, each after its name."""
    return " ; ".join(
        value if field == "title" else f"{field} : {value}"
        for field, value in zip(fields, values, strict=True)
        if value
    )


def _compose(
    ids: np.ndarray,
    masks: np.ndarray,
    unknown: int,
    numbers: np.ndarray,
    labels: Mapping[str, Label],
    rows: np.ndarray,
    chance: np.ndarray | None,
) -> Batch:
    """Row r is film r."""
    words, mask = ids[rows], masks[rows]
    if chance is not None:
        words = np.where(mask, augmentation.text(words, chance, unknown=unknown), words)
    return {
        "inputs": {
            "text": {"x": words, "mask": mask, "present": mask.any(1)},
            "table": {"x": numbers[rows], "present": np.ones(len(rows), bool)},
        },
        "targets": {
            name: {"y": label.y[rows], "present": label.present[rows]}
            for name, label in labels.items()
        },
        "id": rows.astype(np.int32),
    }
