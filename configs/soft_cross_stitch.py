"""Soft sharing by cross-stitch: a tower for each task, and learned mixtures of their features.

python -m mtmm_jax.train --config configs/soft_cross_stitch.py --workdir runs/soft_cross_stitch

As shared_weights, with two layers a task that are mixed after each (Misra et al. 2016). Baselines:
shared_weights (all is shared) and shared_features (nothing behind the features is).

Measured (test, one seed, 2 minutes each with one of two cores): category accuracy .872, subcategory
accuracy .571, year r2 .247; trivial: category accuracy .189, subcategory accuracy .148, year r2
-.012; shared weights: category accuracy .844, subcategory accuracy .666†, year r2 .277†; own
networks: category accuracy .852, subcategory accuracy .640†, year r2 .278†.
"""

from ml_collections import ConfigDict

from mtmm_jax import training


def get_config() -> ConfigDict:
    config = training.load("shared_weights")
    config.model.sharing = {"kind": "cross_stitch", "layers": 2}
    return config
