"""Structured pruning: the weakest 30% of the channels of each layer are zero as a whole.

python -m mtmm_jax.train --config pruned_channels --workdir runs/pruned_channels

pruned by channels, 1000 steps: a network can be built anew without them. Baselines: weights one by
one, pruned; --config.optimizer.prune=None, which is emoji.
"""

from ml_collections import ConfigDict

from mtmm_jax import training


def get_config() -> ConfigDict:
    config = training.load("pruned")
    with config.unlocked():
        config.optimizer.prune.update({"kind": "structured", "scope": "layer", "share": 0.3})
    return config
