"""Many tasks, most labels missing: five tasks on films in one model.

python -m mtmm_jax.train --config configs/many_tasks.py --workdir runs/many_tasks

Genres, two scores, the rating and the box office, of which 15% to all films have one; a label that
is missing adds nothing. 600 steps. Baseline: each task alone, --config.balancing=equal and
--config.tasks.genre=None and so on.
"""

from ml_collections import ConfigDict

from mtmm_jax import training


def get_config() -> ConfigDict:
    config = training.load("films")
    config.steps = 600
    config.checkpoint.every = config.evaluation.every = 200
    return config
