"""Transforms of text: strings, then token ids."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from mtmm_jax import text
from mtmm_jax.data.transforms import augment
from mtmm_jax.data.transforms.stage import Form, Stage, each
from mtmm_jax.ranges import Share, Size, TextLength


def lower(form: Form, where: str) -> Stage:
    """Lower case."""
    return Stage(form, each(str.lower), each=True)


def tokenize(form: Form, where: str, length: TextLength, vocabulary: Size = 2000) -> Stage:
    """`length` ids by a byte-pair tokenizer that is trained on the train split's texts."""

    def fit(texts: Sequence[str]) -> str:
        return text.train_tokenizer(texts, vocabulary)

    def load(tokenizer_json: str) -> Stage:
        tokenizer = text.read_tokenizer(tokenizer_json)
        known = dataclasses.replace(
            out,
            vocabulary=tokenizer.get_vocab_size(),
            padding=text.padding_id(tokenizer) or 0,
            unknown=text.unknown_id(tokenizer),
        )
        return Stage(known, lambda x, u: text.encode(tokenizer, x, length), load=load)

    out = Form("text", (length,), "int32")
    return Stage(out, None, fit=fit, load=load)


def token_dropout(form: Form, where: str, share: Share = 0.1) -> Stage:
    """Replaces a share of the tokens by the unknown one."""
    (length,) = form.shape
    unknown, padding = form.unknown, form.padding
    drop = lambda x, u: augment.token_dropout(x, u, share, unknown, padding)  # noqa: E731
    return Stage(form, drop, draws=length)
