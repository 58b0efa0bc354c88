"""Pruning: 70% of the weights of encoders and fusion are zero in the end, the smallest first.

python -m mtmm_jax.train --config pruned --workdir runs/pruned

emoji, 1000 steps; zeros grow from step 100 to 700, and the rest learns to do without them.
Baseline: --config.optimizer.prune=None, which is emoji. Files, latency and metrics next to it:
`python -m mtmm_jax.benchmarks.studies.smaller`.
"""

from ml_collections import ConfigDict

from mtmm_jax import training


def get_config() -> ConfigDict:
    config = training.load("emoji")
    with config.unlocked():
        config.optimizer.prune = {
            "share": 0.7,
            "begin": 100,
            "end": 700,
            "every": 20,
            "on": ["(encoders|fusion)/.*/(kernel|recurrent)"],
        }
    return config
