r"""Shared features, frozen: separate networks over features that stay as they were drawn.

python -m mtmm_jax.train --config configs/shared_features_frozen.py \
    --workdir runs/shared_features_frozen

Encoders and fusion keep their first, random weights; only the networks of the tasks learn.
Baseline: shared_features, where the features are learned with them. For features of other origin,
import pretrained encoders (mtmm_jax.transfer) under the same two rules.
"""

from ml_collections import ConfigDict

from mtmm_jax import training


def get_config() -> ConfigDict:
    config = training.load("shared_features")
    config.optimizer.freeze = ["encoders/.*", "fusion/.*"]
    return config
