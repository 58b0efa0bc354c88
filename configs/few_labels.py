"""Few labels: a tenth of the emoji have a category; pairs of picture and name have no label.

python -m mtmm_jax.train --config configs/few_labels.py --workdir runs/few_labels

Category from 10% of the labels, beside retrieval, which needs none, 300 steps. Baseline: the
category alone from the same labels, --config.tasks.retrieval=None.
"""

from ml_collections import ConfigDict

from mtmm_jax import training


def get_config() -> ConfigDict:
    config = training.load("emoji")
    config.steps = 300
    config.data.hide = {"category": 0.1}
    del config.tasks.year, config.tasks.subcategory
    config.checkpoint.every = config.evaluation.every = 100
    config.checkpoint.best = "category"
    return config
