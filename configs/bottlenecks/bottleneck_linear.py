"""A linear bottleneck before fusion: four numbers of each view, the control of the others.

python -m mtmm_jax.train --config bottleneck_linear --workdir runs/bottleneck_linear

digits, 600 steps. Baseline: the way as it is, --config.model.bottleneck=None, which is digits. Over
other sizes: `python -m mtmm_jax.benchmarks.studies.width`.
"""

from ml_collections import ConfigDict

from mtmm_jax import training


def get_config() -> ConfigDict:
    config = training.load("digits")
    with config.unlocked():
        config.model.bottleneck = {"all": {"kind": "linear", "k": 4}}
    return config
