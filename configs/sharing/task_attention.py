"""Task attention over the tasks' features: every head reads one weighted sum of them.

python -m mtmm_jax.train --config task_attention --workdir runs/task_attention

g = sum_k a_k f_k, a = softmax of a small network's scores. Baseline: shared_weights, where every
head reads the fused features themselves.

Measured (test, 3 seeds, 54 s each with one of two cores): category accuracy .844 ± .004,
subcategory accuracy .601 ± .017, year r2 .273 ± .013. Trivial predictions and baselines:
configs/README.md.
"""

from ml_collections import ConfigDict

from mtmm_jax import training


def get_config() -> ConfigDict:
    config = training.load("shared_weights")
    config.model.sharing = {"kind": "task_attention"}
    return config
