r"""An information bottleneck before fusion: of each view what the task pays for, in nats.

python -m mtmm_jax.train --config bottleneck_information \
    --workdir runs/bottleneck_information

digits with four noisy numbers of each view, 600 steps.
Baselines: the way as it is, --config.model.bottleneck=None, which is digits; as many numbers by a
linear map, bottleneck_linear. Over other sizes: `python -m mtmm_jax.benchmarks.studies.width`.
"""

from ml_collections import ConfigDict

from mtmm_jax import training


def get_config() -> ConfigDict:
    config = training.load("digits")
    with config.unlocked():
        config.model.bottleneck = {"all": {"kind": "information", "k": 4, "beta": 1e-3}}
    return config
