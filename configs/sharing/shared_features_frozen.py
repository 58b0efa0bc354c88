r"""Shared features, frozen: separate networks over features that an earlier run has learned.

python -m mtmm_jax.train --config shared_weights --workdir runs/shared_weights
python -m mtmm_jax.train --config shared_features_frozen \
    --workdir runs/shared_features_frozen

Encoders and fusion come from the first run and stay; only the networks of the tasks learn.
Baselines: shared_features, where the features are learned with them, and features that stay as they
were drawn, --config.init_from=None. Pretrained encoders may be imported instead
(config.init_from.weights).

Measured (test, 3 seeds, 86 s each with one of two cores): category accuracy .859 ± .005,
subcategory accuracy .668 ± .018, year r2 .271 ± .039. Trivial predictions and baselines:
configs/README.md.
"""

from ml_collections import ConfigDict

from mtmm_jax import training


def get_config() -> ConfigDict:
    config = training.load("shared_features")
    features = "(encoders|fusion)/.*"
    config.init_from = {"workdir": "runs/shared_weights", "map": [[features, r"\g<0>"]]}
    config.optimizer.freeze = [features]
    return config
