"""Task weights, by performance: what scores low on validation gains weight.

python -m mtmm_jax.train --config configs/weights_performance.py --workdir runs/weights_performance

weights_static with another line for the balancing. Weights move at each validation, every 100
steps. Baselines: weights_static, and equal weights.

Measured (test, one seed, 73 s each with one of two cores): box_office r2 .420, genre
average_precision .236, genre, exact_match .123, metacritic r2 .282, rating accuracy .545,
tomatometer r2 .194; trivial: box_office r2 -.000, genre average_precision .099, genre, exact_match
.155, metacritic r2 -.004, rating accuracy .467, tomatometer r2 -.003; equal weights: box_office r2
.420†, genre average_precision .241†, genre, exact_match .122, metacritic r2 .268, rating accuracy
.565†, tomatometer r2 .183.
"""

from ml_collections import ConfigDict

from mtmm_jax import training


def get_config() -> ConfigDict:
    config = training.load("weights_static")
    config.balancing = {"kind": "performance", "favour": "focal", "decay": 0.5}
    return config
