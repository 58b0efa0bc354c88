"""Task weights, learned by back-propagation through a step: what helps on held-out rows gains.

python -m mtmm_jax.train --config configs/weights_learned.py --workdir runs/weights_learned

weights_static with another line for the balancing. Needs the gradients of two half-batches of every
task. Baselines: weights_static, and equal weights.

Measured (test, one seed, 112 s each with one of two cores): box_office r2 .410, genre
average_precision .177, genre, exact_match .106, metacritic r2 .270, rating accuracy .492,
tomatometer r2 .173; trivial: box_office r2 -.000, genre average_precision .099, genre, exact_match
.155, metacritic r2 -.004, rating accuracy .467, tomatometer r2 -.003; equal weights: box_office r2
.420†, genre average_precision .241†, genre, exact_match .122†, metacritic r2 .268, rating accuracy
.565†, tomatometer r2 .183†.
"""

from ml_collections import ConfigDict

from mtmm_jax import training


def get_config() -> ConfigDict:
    config = training.load("weights_static")
    config.balancing = {"kind": "learned", "learning_rate": 0.01}
    return config
