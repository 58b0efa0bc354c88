"""Task weights, static: five tasks on films, weights given by hand.

python -m mtmm_jax.train --config configs/weights_static.py --workdir runs/weights_static

L = sum_k w_k L_k with the weights of the films config, 400 steps. The other weights_* configs are
this one with another line for the balancing. Baseline: equal weights, --config.balancing=equal.

Measured (test, one seed, 37 s each with one of two cores): box_office r2 .430, genre
average_precision .266, genre, exact_match .151, metacritic r2 .280, rating accuracy .549,
tomatometer r2 .200; trivial: box_office r2 -.000, genre average_precision .099, genre, exact_match
.155, metacritic r2 -.004, rating accuracy .467, tomatometer r2 -.003; equal weights: box_office r2
.420, genre average_precision .241, genre, exact_match .122, metacritic r2 .268, rating accuracy
.565†, tomatometer r2 .183.
"""

from ml_collections import ConfigDict

from mtmm_jax import training


def get_config() -> ConfigDict:
    config = training.load("films")
    config.steps = 400
    config.checkpoint.every = config.evaluation.every = 100
    return config
