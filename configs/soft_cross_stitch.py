"""Soft sharing by cross-stitch: a tower for each task, and learned mixtures of their features.

python -m mtmm_jax.train --config configs/soft_cross_stitch.py --workdir runs/soft_cross_stitch

As shared_weights, with two layers a task that are mixed after each (Misra et al. 2016). Baselines:
shared_weights (all is shared) and shared_features (nothing behind the features is).

Measured (test, 3 seeds, 81 s each with one of two cores): category accuracy .842 ± .023,
subcategory accuracy .577 ± .005, year r2 .210 ± .029; trivial: category accuracy .189, subcategory
accuracy .148, year r2 -.012; shared weights: category accuracy .852 ± .006†, subcategory accuracy
.682 ± .018†, year r2 .218 ± .045†; own networks: category accuracy .844 ± .006†, subcategory
accuracy .628 ± .012†, year r2 .208 ± .050.
"""

from ml_collections import ConfigDict

from mtmm_jax import training


def get_config() -> ConfigDict:
    config = training.load("shared_weights")
    config.model.sharing = {"kind": "cross_stitch", "layers": 2}
    return config
