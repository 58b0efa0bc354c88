r"""Task weights, cross-validated: candidates are compared on folds, the best one trains.

python -m mtmm_jax.train --config weights_cross_validated \
    --workdir runs/weights_cross_validated
python -m mtmm_jax.sweep --config weights_cross_validated --workdir runs/weights_cv \
    --cv 2 --weights 1,1,1,1,1 --weights 1,10,1,1,1 --weights 1,3,1,1,3

weights_static with another line for the balancing. The first command trains equal weights; the
second compares three vectors on two folds each (tasks in the order of their names) and trains with
the winner. Baselines: weights_static, and equal weights.

Measured (test, 3 seeds, 5 minutes each with one of two cores): box office r2 .429 ± .018, genre
average precision .261 ± .008, genre, exact match .152 ± .004, metacritic r2 .273 ± .014, rating
accuracy .562 ± .010, tomatometer r2 .196 ± .005. Trivial predictions and baselines:
configs/README.md.
"""

from ml_collections import ConfigDict

from mtmm_jax import training


def get_config() -> ConfigDict:
    config = training.load("weights_static")
    config.balancing = {"kind": "static", "weights": 1.0}
    return config
