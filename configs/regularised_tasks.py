"""Regularised multi-task learning: networks of the tasks' own that span few directions.

python -m mtmm_jax.train --config configs/regularised_tasks.py --workdir runs/regularised_tasks

L = sum_k L_k + 0.001 |[theta_1; ..; theta_K]|_* + 0.01 |fused features|_1: the trace norm of the
tasks' first layers and sparse shared features. Baseline: shared_features, without both terms.
"""

from ml_collections import ConfigDict

from mtmm_jax import training


def get_config() -> ConfigDict:
    config = training.load("shared_features")
    paths = [f"sharing/in_{task}" for task in ("category", "subcategory", "year")]
    config.model.regularisers = [
        {"kind": "trace_norm", "paths": paths, "alpha": 1e-3},
        {"kind": "sparsity", "of": ["fused"], "alpha": 0.01},
    ]
    return config
