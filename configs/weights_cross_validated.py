r"""Task weights, cross-validated: candidates are compared on folds, the best one trains.

python -m mtmm_jax.train --config configs/weights_cross_validated.py \
    --workdir runs/weights_cross_validated
python -m mtmm_jax.sweep --config configs/weights_cross_validated.py --workdir runs/weights_cv \
    --cv 2 --weights 1,1,1,1,1 --weights 1,10,1,1,1 --weights 1,3,1,1,3

weights_static with another line for the balancing. The first command trains equal weights; the
second compares three vectors on two folds each (tasks in the order of their names) and trains with
the winner. Baselines: weights_static, and equal weights.

Measured (test, one seed, 6 minutes each with one of two cores): box_office r2 .430, genre
average_precision .267, genre, exact_match .151, metacritic r2 .281, rating accuracy .549,
tomatometer r2 .201; trivial: box_office r2 -.000, genre average_precision .099, genre, exact_match
.155, metacritic r2 -.004, rating accuracy .467, tomatometer r2 -.003; equal weights: box_office r2
.420, genre average_precision .241, genre, exact_match .122, metacritic r2 .268, rating accuracy
.565†, tomatometer r2 .183.
"""

from ml_collections import ConfigDict

from mtmm_jax import training


def get_config() -> ConfigDict:
    config = training.load("weights_static")
    config.balancing = {"kind": "static", "weights": 1.0}
    return config
