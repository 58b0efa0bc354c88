"""Independent training: a model that knows speech only.

python -m mtmm_jax.train --config independent_audio --workdir runs/independent_audio

fusion_late with an audio encoder only. Baseline: fusion_late, all three trained as one.
"""

from ml_collections import ConfigDict

from mtmm_jax import training


def get_config() -> ConfigDict:
    config = training.load("fusion_late")
    del config.model.encoders.image, config.model.encoders.text
    config.model.modality_dropout = 0.0
    return config
