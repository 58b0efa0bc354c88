r"""Shared features, frozen: separate networks over features that an earlier run has learned.

python -m mtmm_jax.train --config configs/shared_weights.py --workdir runs/shared_weights
python -m mtmm_jax.train --config configs/shared_features_frozen.py \
    --workdir runs/shared_features_frozen

Encoders and fusion come from the first run and stay; only the networks of the tasks learn.
Baselines: shared_features, where the features are learned with them, and features that stay as they
were drawn, --config.init_from=None. Pretrained encoders may be imported instead
(config.init_from.weights).

Measured (test, one seed, 14 s each with one of two cores): category accuracy .862, subcategory
accuracy .648, year r2 .314; trivial: category accuracy .189, subcategory accuracy .148, year r2
-.012; own networks: category accuracy .852, subcategory accuracy .640, year r2 .278; as they were
drawn: category accuracy .531, subcategory accuracy .339, year r2 .050.
"""

from ml_collections import ConfigDict

from mtmm_jax import training


def get_config() -> ConfigDict:
    config = training.load("shared_features")
    features = "(encoders|fusion)/.*"
    config.init_from = {"workdir": "runs/shared_weights", "map": [[features, r"\g<0>"]]}
    config.optimizer.freeze = [features]
    return config
