"""Soft sharing by cross-stitch: a tower for each task, and learned mixtures of their features.

python -m mtmm_jax.train --config soft_cross_stitch --workdir runs/soft_cross_stitch

As shared_weights, with two layers a task that are mixed after each (Misra et al. 2016). Baselines:
shared_weights (all is shared) and shared_features (nothing behind the features is).

Measured (test, 3 seeds, 72 s each with one of two cores): category accuracy .844 ± .025,
subcategory accuracy .577 ± .006, year r2 .213 ± .032. Trivial predictions and baselines:
configs/README.md.
"""

from ml_collections import ConfigDict

from mtmm_jax import training


def get_config() -> ConfigDict:
    config = training.load("shared_weights")
    config.model.sharing = {"kind": "cross_stitch", "layers": 2}
    return config
