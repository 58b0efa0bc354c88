"""Task weights, by uncertainty: L = sum_k exp(-s_k) L_k / 2 + s_k / 2, s learned.

python -m mtmm_jax.train --config configs/weights_uncertainty.py --workdir runs/weights_uncertainty

weights_static with another line for the balancing. Baselines: weights_static, and equal weights.
"""

from ml_collections import ConfigDict

from mtmm_jax import training


def get_config() -> ConfigDict:
    config = training.load("weights_static")
    config.balancing = {"kind": "uncertainty"}
    return config
