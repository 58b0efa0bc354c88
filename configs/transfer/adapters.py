r"""Adapters of modalities: each encoder's tokens are corrected for a label it never learned.

python -m mtmm_jax.train --config adapters --workdir runs/adapters \
    --config.init_from.workdir=runs/emoji

probe, the drawing style over frozen encoders and fusion, with a bottleneck of 16 behind each
encoder, 200 steps. Baseline: the linear head alone, --config.model.adapters=None, which is probe.
Adapters of tasks: isolated.
"""

from ml_collections import ConfigDict

from mtmm_jax import training


def get_config() -> ConfigDict:
    config = training.load("probe")
    with config.unlocked():
        config.model.adapters = {name: {"width": 16} for name in config.model.encoders}
    return config
