"""PCA before fusion: of each view the four directions in which it varies most.

python -m mtmm_jax.train --config bottleneck_pca --workdir runs/bottleneck_pca

digits, 600 steps.
Baselines: the way as it is, --config.model.bottleneck=None, which is digits; as many numbers by a
linear map, bottleneck_linear. Over other sizes: `python -m mtmm_jax.benchmarks.studies.width`.
"""

from ml_collections import ConfigDict

from mtmm_jax import training


def get_config() -> ConfigDict:
    config = training.load("digits")
    with config.unlocked():
        config.model.bottleneck = {"all": {"kind": "pca", "k": 4}}
    return config
