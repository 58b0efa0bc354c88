"""Draws a small BERT with random weights, saves it as its library does, and keeps what it gives.

    python tests/encoders/golden/make_bert.py tests/encoders/golden          # the folder `bert`
    python tests/encoders/golden/make_bert.py tests/encoders/golden --real MINILM   # minilm.npz

Needs torch and transformers (made with 2.2.2 and 4.44.2), which no test does. Pooling is written
out here, by the formulas of sentence-transformers' `Pooling`.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoModel, BertConfig, BertModel

WORDS = "a the cat mat rug dog man sun sat on rest ed ing ran under blue red warm is was and"
TEXTS = [
    "The cat sat on the mat",
    "a dog",
    "",
    "the sun is warm and the man rested under the red rug",
    "Unknown zebra words!",
    "resting",
]
SENTENCES = [
    "The cat sat on the mat",
    "A feline rested on the rug",
    "",
    "The stock market fell today, and nobody in the quiet village by the sea had heard of it.",
    "grinning face",
    "naïve café — 🙂 東京",
]


def tokenizer() -> Tokenizer:
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS.split()]
    tokens += [f"##{word}" for word in ("ed", "ing", "s")] + list("abcdefghijklmno!")
    ids = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    made = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.BertProcessing(
        ("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"])
    )
    made.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    made.enable_padding(pad_id=0, pad_token="[PAD]")
    return made


def pooled(hidden: torch.Tensor, mask: torch.Tensor) -> dict[str, np.ndarray]:
    keep = mask[..., None].float()
    total, count = (hidden * keep).sum(1), keep.sum(1)
    return {
        "cls": hidden[:, 0],
        "max": hidden.masked_fill(keep == 0, -1e9).max(1).values,
        "mean": total / count,
        "mean_sqrt_len": total / count.sqrt(),
    }


def run(model: BertModel, words: Tokenizer, texts: list[str]) -> dict[str, np.ndarray]:
    found = words.encode_batch(texts)
    ids = torch.tensor([one.ids for one in found])
    mask = torch.tensor([one.attention_mask for one in found])
    model.eval()
    with torch.no_grad():
        hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
    return {
        "ids": ids.int().numpy(),
        "mask": mask.bool().numpy(),
        "hidden": hidden.numpy(),
        **{name: x.numpy() for name, x in pooled(hidden, mask).items()},
    }


def small(out: Path) -> None:
    torch.manual_seed(0)
    words = tokenizer()
    config = BertConfig(
        vocab_size=64,  # more rows than the tokenizer has entries, as published ones do
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=24,
        max_position_embeddings=20,
        initializer_range=0.3,
        layer_norm_eps=1e-7,
    )
    model = BertModel(config)
    with torch.no_grad():  # nothing is left at 0 or 1
        for name, value in model.named_parameters():
            if "LayerNorm" in name or name.endswith("bias"):
                value += 0.2 * torch.randn_like(value)
    folder = out / "bert"
    model.save_pretrained(folder)
    words.save(str(folder / "tokenizer.json"))
    modules = [
        ("", "Transformer"),
        ("1_Pooling", "Pooling"),
    ]
    (folder / "modules.json").write_text(
        json.dumps(
            [
                {"idx": i, "name": str(i), "path": p, "type": f"sentence_transformers.models.{t}"}
                for i, (p, t) in enumerate(modules)
            ]
        )
    )
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps({"word_embedding_dimension": 16, "pooling_mode_mean_tokens": True})
    )
    np.savez_compressed(out / "bert.npz", texts=TEXTS, **run(model, words, TEXTS))


def real(folder: Path, out: Path) -> None:
    words = Tokenizer.from_file(str(folder / "tokenizer.json"))
    words.no_truncation()
    words.enable_padding(pad_id=0, pad_token="[PAD]")
    found = run(AutoModel.from_pretrained(folder), words, SENTENCES)
    mean = found["mean"] / np.linalg.norm(found["mean"], axis=1, keepdims=True)
    np.savez_compressed(out / "minilm.npz", texts=SENTENCES, mean=mean)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--real", type=Path)
    given = parser.parse_args()
    small(given.out) if given.real is None else real(given.real, given.out)
