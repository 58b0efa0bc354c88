"""Task weights, static: five tasks on films, weights given by hand.

python -m mtmm_jax.train --config configs/weights_static.py --workdir runs/weights_static

L = sum_k w_k L_k with the weights of the films config, 400 steps. The other weights_* configs are
this one with another line for the balancing. Baseline: equal weights, --config.balancing=equal.
"""

from ml_collections import ConfigDict

from mtmm_jax import training


def get_config() -> ConfigDict:
    config = training.load("films")
    config.steps = 400
    config.checkpoint.every = config.evaluation.every = 100
    return config
