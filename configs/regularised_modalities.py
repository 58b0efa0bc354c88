r"""Regularised multi-modal learning: modalities that agree, and a fusion that adds to them.

python -m mtmm_jax.train --config configs/regularised_modalities.py \
    --workdir runs/regularised_modalities

L = sum_k L_k + 0.1 InfoNCE(image, text) + 0.1 cos(fused, audio)^2. Baseline: fusion_late, without
both terms.
"""

from ml_collections import ConfigDict

from mtmm_jax import training


def get_config() -> ConfigDict:
    config = training.load("fusion_late")
    config.model.regularisers = [
        {"kind": "agreement", "between": ["image", "text"], "measure": "contrastive", "alpha": 0.1},
        {"kind": "orthogonality", "between": ["fused", "audio"], "alpha": 0.1},
    ]
    return config
