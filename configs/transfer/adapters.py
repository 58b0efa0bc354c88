r"""Adapters of modalities: each encoder's tokens are corrected for a label it never learned.

python -m mtmm_jax.train --config adapters --workdir runs/adapters \
    --config.init_from.workdir=runs/emoji

linear_probe, the drawing style over frozen encoders and fusion, with a bottleneck of 16 behind each
encoder, 200 steps. Baseline: the linear head alone, --config.model.adapters=None, which is
linear_probe. Adapters of tasks: isolated_features.
"""

from ml_collections import ConfigDict

from mtmm_jax import training


def get_config() -> ConfigDict:
    config = training.load("linear_probe")
    with config.unlocked():
        config.model.adapters = {name: {"width": 16} for name in config.model.encoders}
    return config
