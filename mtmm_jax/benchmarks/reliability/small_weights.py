"""A folder of pretrained weights of a few kilobytes: a BERT with random parameters."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

WIDTH, POSITIONS = 8, 16


def write_weights(folder: Path, words: Sequence[str], seed: int = 0) -> None:
    """`config.json`, `tokenizer.json`, `model.safetensors`, and `SHA256SUMS` of them."""
    folder.mkdir(parents=True)
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words]
    sizes = {
        "model_type": "bert", "hidden_size": WIDTH, "num_hidden_layers": 1,
        "num_attention_heads": 2, "intermediate_size": 8, "hidden_act": "gelu",
        "max_position_embeddings": POSITIONS, "type_vocab_size": 2, "vocab_size": len(tokens),
    }  # fmt: skip
    contents = {
        "config.json": json.dumps(sizes).encode(),
        "tokenizer.json": _tokenizer(tokens).encode(),
        "model.safetensors": safetensors(_tensors(len(tokens), np.random.default_rng(seed))),
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    lines = [f"{digest}  {name}\n" for name, digest in sums.items()]
    (folder / "SHA256SUMS").write_text("".join(lines))


def _tokenizer(tokens: Sequence[str]) -> str:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    ids = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    made = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = (("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"]))
    made.post_processor = processors.BertProcessing(*ends)
    made.add_special_tokens([token for token in tokens if token.startswith("[")])
    made.enable_padding(pad_id=ids["[PAD]"], pad_token="[PAD]")
    return made.to_str()


def _tensors(vocabulary: int, chance: np.random.Generator) -> dict[str, np.ndarray]:
    layer, embeddings = "encoder.layer.0.", "embeddings."
    matrices = {
        f"{embeddings}word_embeddings": (vocabulary, WIDTH),
        f"{embeddings}position_embeddings": (POSITIONS, WIDTH),
        f"{embeddings}token_type_embeddings": (2, WIDTH),
    }
    dense = ("attention.self.query", "attention.self.key", "attention.self.value",
             "attention.output.dense", "intermediate.dense", "output.dense")  # fmt: skip
    norms = (f"{embeddings}LayerNorm", f"{layer}attention.output.LayerNorm",
             f"{layer}output.LayerNorm")  # fmt: skip
    found = {f"{name}.weight": chance.normal(size=shape) for name, shape in matrices.items()}
    for name in dense:
        found[f"{layer}{name}.weight"] = chance.normal(size=(WIDTH, WIDTH)) / WIDTH
        found[f"{layer}{name}.bias"] = chance.normal(size=WIDTH) / WIDTH
    for name in norms:
        found |= {f"{name}.weight": np.ones(WIDTH), f"{name}.bias": np.zeros(WIDTH)}
    return {name: x.astype(np.float32) for name, x in found.items()}


def safetensors(tensors: Mapping[str, np.ndarray]) -> bytes:
    """A file of float32 tensors."""
    header, body = {}, b""
    for name, x in tensors.items():
        span = [len(body), len(body) + x.nbytes]
        header[name] = {"dtype": "F32", "shape": list(x.shape), "data_offsets": span}
        body += x.tobytes()
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    return struct.pack("<Q", len(head)) + head + body
