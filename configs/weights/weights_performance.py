"""Task weights, by performance: what scores low on validation gains weight.

python -m mtmm_jax.train --config weights_performance --workdir runs/weights_performance

weights_static with another line for the balancing. Weights move at each validation, every 100
steps. Baselines: weights_static, and equal weights.

Measured (test, 3 seeds, 36 s each with one of two cores): box_office r2 .410 ± .030, genre
average_precision .238 ± .005, genre, exact_match .136 ± .009, metacritic r2 .277 ± .009, rating
accuracy .539 ± .004, tomatometer r2 .203 ± .007; trivial: box_office r2 -.000, genre
average_precision .099, genre, exact_match .155, metacritic r2 -.004, rating accuracy .467,
tomatometer r2 -.003; equal weights: box_office r2 .428 ± .009†, genre average_precision .236 ±
.007, genre, exact_match .129 ± .005, metacritic r2 .270 ± .010, rating accuracy .554 ± .013†,
tomatometer r2 .189 ± .005.
"""

from ml_collections import ConfigDict

from mtmm_jax import training


def get_config() -> ConfigDict:
    config = training.load("weights_static")
    config.balancing = {"kind": "performance", "favour": "focal", "decay": 0.5}
    return config
