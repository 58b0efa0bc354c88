"""Text to token ids: a small byte-pair tokenizer, trained on the train split's texts only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PADDING, UNKNOWN = 0, 1
SPECIAL = ("[PAD]", "[UNK]")


def train_tokenizer(texts: Sequence[str], vocabulary: int) -> str:
    """A `tokenizer.json`: lower case, accents stripped, at most `vocabulary` entries.

    Byte-pair encoding, as its trainer is deterministic (the tokenizers library's WordPiece trainer
    is not: it numbers its pieces in the order of a randomised hash table). Frequent words are one
    token, rare ones several, and a letter that the texts do not have is `[UNK]`.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(unk_token=SPECIAL[UNKNOWN]))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Punctuation(),
            pre_tokenizers.Metaspace(prepend_scheme="always"),
        ]
    )
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, min_frequency=2, special_tokens=list(SPECIAL), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer.to_str(pretty=True)


def read_tokenizer(tokenizer_json: str | bytes) -> Tokenizer:
    from tokenizers import Tokenizer

    text = tokenizer_json.decode() if isinstance(tokenizer_json, bytes) else tokenizer_json
    return Tokenizer.from_str(text)


def encode(tokenizer: Tokenizer, texts: Sequence[str], length: int) -> np.ndarray:
    """`[N, length]` int32, cut at the end, padded with `PADDING`."""
    ids = np.full((len(texts), length), PADDING, np.int32)
    for row, encoding in zip(ids, tokenizer.encode_batch(list(texts)), strict=True):
        kept = encoding.ids[:length]
        row[: len(kept)] = kept
    return ids
