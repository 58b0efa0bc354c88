"""A teacher: shared_weights with larger encoders, four times the parameters.

python -m mtmm_jax.train --config distil_teacher --workdir runs/distil_teacher

3.35 million parameters, 300 steps. Its student is distil_small.
"""

from ml_collections import ConfigDict

from mtmm_jax import training


def get_config() -> ConfigDict:
    config = training.load("shared_weights")
    config.model.width = 192
    for name in ("image", "text", "audio"):
        config.model.encoders[name].preset = "small"
    return config
