"""BERT, and what has its layout (MiniLM, BGE, E5, GTE's first): saved names -> `encoders.Bert`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mtmm_jax.encoders.backbones.backbone import Backbone
from mtmm_jax.encoders.backbones.mapping import PathRule, convert, transposed
from mtmm_jax.encoders.text import BERTS, Bert
from mtmm_jax.registry import ConfigError, choose

_EMBEDDINGS = r"(?:bert\.)?embeddings\."
_LAYER = r"(?:bert\.)?encoder\.layer\.(?P<index>\d+)\."
_BLOCK = "params/block{next}/"
# Hugging Face's name within a layer -> ours
_DENSE = {
    r"attention\.self\.(query|key|value)": "attention/{1}",
    r"attention\.output\.dense": "attention/out",
    r"intermediate\.dense": "feed_forward/up",
    r"output\.dense": "feed_forward/down",
}
_NORMS = {
    r"attention\.output\.LayerNorm": "attention_norm",
    r"output\.LayerNorm": "feed_forward_norm",
}


def _norm(pattern: str, path: str) -> tuple[PathRule, PathRule]:
    """Old files say gamma and beta."""
    return (
        PathRule(rf"{pattern}\.(?:weight|gamma)", f"{path}/scale"),
        PathRule(rf"{pattern}\.(?:bias|beta)", f"{path}/bias"),
    )


RULES = (
    PathRule(rf"{_EMBEDDINGS}word_embeddings\.weight", "params/embedding/embedding"),
    PathRule(rf"{_EMBEDDINGS}position_embeddings\.weight", "params/positions"),
    PathRule(rf"{_EMBEDDINGS}token_type_embeddings\.weight", "params/types"),
    *_norm(rf"{_EMBEDDINGS}LayerNorm", "params/embedding_norm"),
    *(
        PathRule(rf"{_LAYER}{n}\.weight", f"{_BLOCK}{p}/kernel", transposed)
        for n, p in _DENSE.items()
    ),
    *(PathRule(rf"{_LAYER}{n}\.bias", f"{_BLOCK}{p}/bias") for n, p in _DENSE.items()),
    *(rule for n, p in _NORMS.items() for rule in _norm(f"{_LAYER}{n}", f"{_BLOCK}{p}")),
)
# The pooler and the heads of pretraining, and a constant that old files hold.
IGNORED = r"(bert\.)?pooler\..*|cls\..*|.*position_ids"


def _rows(tensors: Mapping[str, Any], pattern: str) -> int:
    """The number of rows of the tensor of that name; 1 where it is missing."""
    found = [np.shape(x) for name, x in tensors.items() if re.fullmatch(pattern, name)]
    return found[0][0] if found and found[0] else 1


def import_bert(tensors: Mapping[str, Any], preset: str) -> dict[str, Any]:
    """Variables `{"params": ...}` of a BERT, without its last linear map.

    The encoder that fits is `{"kind": "bert", "preset": preset}` over the file's own tokenizer;
    vocabulary, positions and types are as many as the tensors have. Give the result to
    `load_pretrained`.

    Args:
        tensors: Hugging Face's names -> arrays, as `read_safetensors` gives them.
        preset: of `encoders.Bert`.

    Raises:
        ConfigError: naming every tensor that is missing, left over or of another shape.
    """
    choose(preset, BERTS, "import_bert.preset", "preset")
    rows = {rule.path: rule.pattern for rule in RULES[:3]}
    rows = {path: _rows(tensors, pattern) for path, pattern in rows.items()}
    module = Bert(
        BERTS[preset][1],
        preset=preset,
        vocabulary=rows["params/embedding/embedding"],
        length=rows["params/positions"],
        types=rows["params/types"],
        projected=False,
    )
    entry = {"x": jnp.zeros((1, 1), jnp.int32), "present": jnp.ones(1, bool)}
    wanted = jax.eval_shape(module.init, jax.random.key(0), entry)
    return convert(tensors, RULES, wanted, f"import_bert {preset}", IGNORED)


def sizes(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The fields of `encoders.Bert` for a `config.json`."""
    fixed = {"hidden_act": "gelu", "position_embedding_type": "absolute", "is_decoder": False}
    for key, wanted in fixed.items():
        if config.get(key, wanted) != wanted:
            raise ConfigError(
                f"{where}: config.json has {key} {config[key]!r}; this layout needs {wanted!r}"
            )
    keys = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size")
    counts = (*keys, "vocab_size", "max_position_embeddings", "type_vocab_size")
    wrong = [key for key in counts if type(config.get(key)) is not int or config[key] < 1]
    if wrong:
        raise ConfigError(f"{where}: config.json has no number of 1 or more as {', '.join(wrong)}")
    return {
        "sizes": [config[key] for key in keys],
        "vocabulary": config["vocab_size"],
        "length": config["max_position_embeddings"],
        "types": config["type_vocab_size"],
        "epsilon": config.get("layer_norm_eps", 1e-12),
    }


BERT = Backbone(Bert, sizes, RULES, IGNORED, tokenized=True)
