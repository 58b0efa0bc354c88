"""Pseudo-labels: of the emoji without a category, those that the model is sure of teach it.

python -m mtmm_jax.train --config semi_pseudo --workdir runs/semi_pseudo

A tenth of the categories, 300 steps, 50 of them without. What the averaged model says of a row with
a probability of 0.9 or more is its label for the model that sees it augmented in the step.
Baseline: the same labels alone, --config.semi=None.
"""

from ml_collections import ConfigDict

from mtmm_jax import training


def get_config() -> ConfigDict:
    config = training.load("few_labels")
    del config.tasks.retrieval
    config.optimizer.ema = 0.99
    config.data.in_step = {"image": "cut_out|color", "text": "token_dropout(0.2)"}
    config.semi = {"kind": "pseudo", "thresholds": 0.9, "alpha": 1.0, "warmup": 50}
    return config
