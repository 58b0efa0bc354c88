"""Image and text at 32 pixels: image_text for a quick run without an accelerator.

python -m mtmm_jax.train --config configs/image_text_small.py --workdir runs/image_text_small

ResNet-18 with its large stem on 32 pixels, BERT of two layers, 300 steps. Baselines: the picture
without the text and the text without the picture, by the overrides of image_text.
"""

from ml_collections import ConfigDict

from mtmm_jax import training


def get_config() -> ConfigDict:
    config = training.load("image_text")
    config.steps = 300
    del config.data.image_size
    config.model.encoders.text.preset = "tiny"
    config.checkpoint.every = config.evaluation.every = 150
    return config
