"""Soft sharing by distance: networks of the tasks' own that are pulled towards each other.

python -m mtmm_jax.train --config soft_distance --workdir runs/soft_distance

L = sum_k L_k + 0.01 sum_k |theta_k - mean theta|^2 over the layers of shared_features, which is the
baseline: the same networks without the pull.

Measured (test, 3 seeds, 64 s each with one of two cores): category accuracy .854 ± .004,
subcategory accuracy .643 ± .011, year r2 .214 ± .053. Trivial predictions and baselines:
configs/README.md.
"""

from ml_collections import ConfigDict

from mtmm_jax import training


def get_config() -> ConfigDict:
    config = training.load("shared_features")
    tasks = ("category", "subcategory", "year")
    config.model.regularisers = [
        {
            "kind": "distance",
            "paths": [f"sharing/{layer}_{task}" for task in tasks],
            "alpha": 0.01,
        }
        for layer in ("in", "out")
    ]
    return config
