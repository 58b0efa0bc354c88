"""Many tasks, most labels missing: five tasks on films in one model.

python -m mtmm_jax.train --config many_tasks --workdir runs/many_tasks

Genres, two scores, the rating and the box office, of which 15% to all films have one; a label that
is missing adds nothing. 600 steps. Baseline: each task alone, --config.balancing=equal and
--config.tasks.genre=None and so on.

Measured (test, 3 seeds, 18 s each with one of two cores): box office r2 .434 ± .011, genre average
precision .271 ± .003, genre, exact match .163 ± .003, metacritic r2 .293 ± .005, rating accuracy
.583 ± .004, tomatometer r2 .216 ± .001. Trivial predictions and baselines: configs/README.md.
"""

from ml_collections import ConfigDict

from mtmm_jax import training


def get_config() -> ConfigDict:
    config = training.load("films")
    config.steps = 600
    config.checkpoint.every = config.evaluation.every = 200
    return config
