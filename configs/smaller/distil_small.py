"""Distillation: a student with a quarter of the parameters learns from a run of three tasks.

python -m mtmm_jax.train --config distil_teacher --workdir runs/distil_teacher
python -m mtmm_jax.train --config distil_small --workdir runs/distil_small

shared_weights (0.83 million parameters) with what the teacher (3.35 million) says of each batch
next to the labels, T = 2, 1000 steps: a small model takes longer to come as far. Baseline: the
student alone, --config.teachers=None; above it, the teacher of 300 steps.
"""

from ml_collections import ConfigDict

from mtmm_jax import training


def get_config() -> ConfigDict:
    config = training.load("shared_weights")
    config.steps = 1000
    config.teachers = {"workdirs": ["runs/distil_teacher"], "temperature": 2.0, "alpha": 3.0}
    return config
