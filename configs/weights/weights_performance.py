"""Task weights, by performance: what scores low on validation gains weight.

python -m mtmm_jax.train --config weights_performance --workdir runs/weights_performance

weights_static with another line for the balancing. Weights move at each validation, every 100
steps. Baselines: weights_static, and equal weights.

Measured (test, 3 seeds, 36 s each with one of two cores): box office r2 .410 ± .030, genre average
precision .238 ± .005, genre, exact match .136 ± .009, metacritic r2 .277 ± .009, rating accuracy
.539 ± .004, tomatometer r2 .203 ± .007. Trivial predictions and baselines: configs/README.md.
"""

from ml_collections import ConfigDict

from mtmm_jax import training


def get_config() -> ConfigDict:
    config = training.load("weights_static")
    config.balancing = {"kind": "performance", "favour": "focal", "decay": 0.5}
    return config
