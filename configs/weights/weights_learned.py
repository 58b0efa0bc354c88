"""Task weights, learned by back-propagation through a step: what helps on held-out rows gains.

python -m mtmm_jax.train --config weights_learned --workdir runs/weights_learned

weights_static with another line for the balancing. Needs the gradients of two half-batches of every
task. Baselines: weights_static, and equal weights.

Measured (test, 3 seeds, 60 s each with one of two cores): box_office r2 .387 ± .019, genre
average_precision .179 ± .003, genre, exact_match .110 ± .003, metacritic r2 .261 ± .007, rating
accuracy .477 ± .011, tomatometer r2 .169 ± .003; trivial: box_office r2 -.000, genre
average_precision .099, genre, exact_match .155, metacritic r2 -.004, rating accuracy .467,
tomatometer r2 -.003; equal weights: box_office r2 .428 ± .009†, genre average_precision .236 ±
.007†, genre, exact_match .129 ± .005†, metacritic r2 .270 ± .010†, rating accuracy .554 ± .013†,
tomatometer r2 .189 ± .005†.
"""

from ml_collections import ConfigDict

from mtmm_jax import training


def get_config() -> ConfigDict:
    config = training.load("weights_static")
    config.balancing = {"kind": "learned", "learning_rate": 0.01}
    return config
