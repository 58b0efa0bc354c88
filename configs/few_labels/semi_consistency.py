"""Consistency across modalities: picture, name and voice alone say what they say together.

python -m mtmm_jax.train --config semi_consistency --workdir runs/semi_consistency

A tenth of the categories, 300 steps; a head on each modality alone learns from labels and, on every
row, from the fused prediction. Baseline: the same labels alone, --config.semi=None.
"""

from ml_collections import ConfigDict

from mtmm_jax import training


def get_config() -> ConfigDict:
    config = training.load("few_labels")
    del config.tasks.retrieval
    config.tasks.category.unimodal = True
    config.semi = {"kind": "consistency", "alpha": 1.0}
    return config
