"""Task weights, by uncertainty: L = sum_k exp(-s_k) L_k / 2 + s_k / 2, s learned.

python -m mtmm_jax.train --config configs/weights_uncertainty.py --workdir runs/weights_uncertainty

weights_static with another line for the balancing. Baselines: weights_static, and equal weights.

Measured (test, one seed, 31 s each with one of two cores): box_office r2 .433, genre
average_precision .243, genre, exact_match .133, metacritic r2 .276, rating accuracy .557,
tomatometer r2 .187; trivial: box_office r2 -.000, genre average_precision .099, genre, exact_match
.155, metacritic r2 -.004, rating accuracy .467, tomatometer r2 -.003; equal weights: box_office r2
.420, genre average_precision .241, genre, exact_match .122, metacritic r2 .268, rating accuracy
.565†, tomatometer r2 .183.
"""

from ml_collections import ConfigDict

from mtmm_jax import training


def get_config() -> ConfigDict:
    config = training.load("weights_static")
    config.balancing = {"kind": "uncertainty"}
    return config
