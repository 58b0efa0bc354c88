"""Task weights, learned by back-propagation through a step: what helps on held-out rows gains.

python -m mtmm_jax.train --config configs/weights_learned.py --workdir runs/weights_learned

weights_static with another line for the balancing. Needs the gradients of two half-batches of every
task. Baselines: weights_static, and equal weights.
"""

from ml_collections import ConfigDict

from mtmm_jax import training


def get_config() -> ConfigDict:
    config = training.load("weights_static")
    config.balancing = {"kind": "learned", "learning_rate": 0.01}
    return config
