"""Independent training: a model that knows names only.

python -m mtmm_jax.train --config independent_text --workdir runs/independent_text

fusion_late with a text encoder only. Baseline: fusion_late, all three trained as one.
"""

from ml_collections import ConfigDict

from mtmm_jax import training


def get_config() -> ConfigDict:
    config = training.load("fusion_late")
    del config.model.encoders.image, config.model.encoders.audio
    config.model.modality_dropout = 0.0
    return config
