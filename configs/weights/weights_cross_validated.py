r"""Task weights, cross-validated: candidates are compared on folds, the best one trains.

python -m mtmm_jax.train --config weights_cross_validated \
    --workdir runs/weights_cross_validated
python -m mtmm_jax.sweep --config weights_cross_validated --workdir runs/weights_cv \
    --cv 2 --weights 1,1,1,1,1 --weights 1,10,1,1,1 --weights 1,3,1,1,3

weights_static with another line for the balancing. The first command trains equal weights; the
second compares three vectors on two folds each (tasks in the order of their names) and trains with
the winner. Baselines: weights_static, and equal weights.

Measured (test, 3 seeds, 5 minutes each with one of two cores): box_office r2 .429 ± .018, genre
average_precision .261 ± .008, genre, exact_match .152 ± .004, metacritic r2 .273 ± .014, rating
accuracy .562 ± .010, tomatometer r2 .196 ± .005; trivial: box_office r2 -.000, genre
average_precision .099, genre, exact_match .155, metacritic r2 -.004, rating accuracy .467,
tomatometer r2 -.003; equal weights: box_office r2 .428 ± .009, genre average_precision .236 ± .007,
genre, exact_match .129 ± .005, metacritic r2 .270 ± .010, rating accuracy .554 ± .013, tomatometer
r2 .189 ± .005.
"""

from ml_collections import ConfigDict

from mtmm_jax import training


def get_config() -> ConfigDict:
    config = training.load("weights_static")
    config.balancing = {"kind": "static", "weights": 1.0}
    return config
