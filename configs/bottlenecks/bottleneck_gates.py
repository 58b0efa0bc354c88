"""Feature gates: learned switches say which features, and which views, are needed at all.

python -m mtmm_jax.train --config bottleneck_gates --workdir runs/bottleneck_gates

digits, 600 steps, with a gate for each of 64 features and one for each view, and a price on open
ones. Gates move twenty times as fast as weights: by Adam's steps of 0.001 none would close in this
run. With a price of 1 all do. Baselines: the way as it is, --config.model.bottleneck=None, which is
digits; as many numbers by a linear map, bottleneck_linear. Over other sizes: `python -m
mtmm_jax.benchmarks.studies.width`.
"""

from ml_collections import ConfigDict

from mtmm_jax import training


def get_config() -> ConfigDict:
    config = training.load("digits")
    with config.unlocked():
        config.model.bottleneck = {"all": {"kind": "gates", "weight": 0.1}}
        config.optimizer.rates = [["bottleneck/.*", 20.0]]
    return config
