"""Mean teacher: the model agrees with the average of its parameters on rows without a label too.

python -m mtmm_jax.train --config semi_mean_teacher --workdir runs/semi_mean_teacher

A tenth of the categories, 300 steps; the squared distance of the probabilities, ramped up over the
first half. The average sees a row as it is, the model sees it augmented in the step. Baseline: the
same labels alone, --config.semi=None.
"""

from ml_collections import ConfigDict

from mtmm_jax import training


def get_config() -> ConfigDict:
    config = training.load("semi_pseudo")
    config.semi = {"kind": "mean_teacher", "alpha": 10.0, "ramp": 150}
    return config
