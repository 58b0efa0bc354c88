"""Emoji with a fifth task: besides the name written, the name spoken finds its picture.

python -m mtmm_jax.train --config configs/emoji_spoken.py --workdir runs/emoji_spoken

Baselines, at equal compute: each task alone for a fifth of the steps; and each modality alone, as
in emoji.
"""

from ml_collections import ConfigDict

from mtmm_jax import training


def get_config() -> ConfigDict:
    config = training.load("emoji")
    config.tasks.spoken = ConfigDict({"kind": "retrieval", "reads": ["image", "audio"]})
    return config
