"""Task attention over the tasks' features: every head reads one weighted sum of them.

python -m mtmm_jax.train --config configs/task_attention.py --workdir runs/task_attention

g = sum_k a_k f_k, a = softmax of a small network's scores. Baseline: shared_weights, where every
head reads the fused features themselves.
"""

from ml_collections import ConfigDict

from mtmm_jax import training


def get_config() -> ConfigDict:
    config = training.load("shared_weights")
    config.model.sharing = {"kind": "task_attention"}
    return config
