"""Task weights, static: five tasks on films, weights given by hand.

python -m mtmm_jax.train --config weights_static --workdir runs/weights_static

L = sum_k w_k L_k with the weights of the films config, 400 steps. The other weights_* configs are
this one with another line for the balancing. Baseline: equal weights, --config.balancing=equal.

Measured (test, 3 seeds, 10 s each with one of two cores): box office r2 .431 ± .001, genre average
precision .262 ± .003, genre, exact match .152 ± .002, metacritic r2 .271 ± .012, rating accuracy
.560 ± .010, tomatometer r2 .196 ± .004. Trivial predictions and baselines: configs/README.md.
"""

from ml_collections import ConfigDict

from mtmm_jax import training


def get_config() -> ConfigDict:
    config = training.load("films")
    config.steps = 400
    config.checkpoint.every = config.evaluation.every = 100
    return config
