"""Task weights, by uncertainty: L = sum_k exp(-s_k) L_k / 2 + s_k / 2, s learned.

python -m mtmm_jax.train --config weights_uncertainty --workdir runs/weights_uncertainty

weights_static with another line for the balancing. Baselines: weights_static, and equal weights.

Measured (test, 3 seeds, 12 s each with one of two cores): box office r2 .439 ± .010, genre average
precision .239 ± .006, genre, exact match .135 ± .003, metacritic r2 .282 ± .007, rating accuracy
.535 ± .020, tomatometer r2 .199 ± .008. Trivial predictions and baselines: configs/README.md.
"""

from ml_collections import ConfigDict

from mtmm_jax import training


def get_config() -> ConfigDict:
    config = training.load("weights_static")
    config.balancing = {"kind": "uncertainty"}
    return config
