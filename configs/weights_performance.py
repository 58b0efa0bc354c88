"""Task weights, by performance: what scores low on validation gains weight.

python -m mtmm_jax.train --config configs/weights_performance.py --workdir runs/weights_performance

weights_static with another line for the balancing. Weights move at each validation, every 100
steps. Baselines: weights_static, and equal weights.
"""

from ml_collections import ConfigDict

from mtmm_jax import training


def get_config() -> ConfigDict:
    config = training.load("weights_static")
    config.balancing = {"kind": "performance", "favour": "focal", "decay": 0.5}
    return config
