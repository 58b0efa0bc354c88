"""Task weights, by uncertainty: L = sum_k exp(-s_k) L_k / 2 + s_k / 2, s learned.

python -m mtmm_jax.train --config weights_uncertainty --workdir runs/weights_uncertainty

weights_static with another line for the balancing. Baselines: weights_static, and equal weights.

Measured (test, 3 seeds, 12 s each with one of two cores): box_office r2 .439 ± .010, genre
average_precision .239 ± .006, genre, exact_match .135 ± .003, metacritic r2 .282 ± .007, rating
accuracy .535 ± .020, tomatometer r2 .199 ± .008; trivial: box_office r2 -.000, genre
average_precision .099, genre, exact_match .155, metacritic r2 -.004, rating accuracy .467,
tomatometer r2 -.003; equal weights: box_office r2 .428 ± .009, genre average_precision .236 ± .007,
genre, exact_match .129 ± .005, metacritic r2 .270 ± .010, rating accuracy .554 ± .013†, tomatometer
r2 .189 ± .005.
"""

from ml_collections import ConfigDict

from mtmm_jax import training


def get_config() -> ConfigDict:
    config = training.load("weights_static")
    config.balancing = {"kind": "uncertainty"}
    return config
