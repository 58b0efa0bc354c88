"""Names letter by letter: what recognition writes down, and what synthesis reads aloud."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mtmm_jax.batch import Target
from mtmm_jax.text import encode, read_tokenizer, train_characters


def speller(texts: Sequence[str]) -> str:
    """A `tokenizer.json` of the texts' characters: lower case, accents stripped, id 0 is blank."""
    from tokenizers import normalizers

    plain = normalizers.Sequence(
        [normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()]
    )
    tokenizer = read_tokenizer(train_characters([plain.normalize_str(text) for text in texts]))
    tokenizer.normalizer = plain
    return tokenizer.to_str(pretty=True)


def transcripts(names: Sequence[str], split: np.ndarray) -> tuple[np.ndarray, Target]:
    """`[N, length]` ids of all names, 0 after the end, and the target; letters as in training."""
    training = [name for name, where in zip(names, split, strict=True) if where == "train"]
    tokenizer = read_tokenizer(speller(training))
    ids = encode(tokenizer, list(names), None)
    classes = tuple(tokenizer.id_to_token(i) for i in range(tokenizer.get_vocab_size()))
    return ids, Target("tokens", classes=classes, length=ids.shape[1], made_from=("text",))
