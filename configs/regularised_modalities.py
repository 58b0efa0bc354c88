r"""Regularised multi-modal learning: modalities that agree, and a fusion that adds to them.

python -m mtmm_jax.train --config configs/regularised_modalities.py \
    --workdir runs/regularised_modalities

L = sum over tasks and modalities of L_k(x_m), plus those of the fused features, as in
joint_training, + lambda (KL(image, text) + InfoNCE(image, text) + cos(fused, audio)^2 +
0.1 |theta_image - theta_text|^2), lambda = 0.1: on what a picture and a name say of the category,
on their features, on what fusion adds to the sound, and on the two heads' parameters. Another
lambda is --config.model.regulariser_scale=1. Baselines: joint_training, which is lambda = 0, and
fusion_late, with the fused losses only.

Measured (test, one seed, 2 minutes each with one of two cores): category accuracy .875,
category_audio accuracy .393, category_image accuracy .594, category_text accuracy .857, subcategory
accuracy .656, subcategory_audio accuracy .219, subcategory_image accuracy .362, subcategory_text
accuracy .714; trivial: category accuracy .189, category_audio accuracy .189, category_image
accuracy .189, category_text accuracy .189, subcategory accuracy .148, subcategory_audio accuracy
.148, subcategory_image accuracy .148, subcategory_text accuracy .148; joint training: category
accuracy .875, category_audio accuracy .390, category_image accuracy .587, category_text accuracy
.862†, subcategory accuracy .668†, subcategory_audio accuracy .214, subcategory_image accuracy .342,
subcategory_text accuracy .704; late fusion: category accuracy .852, subcategory accuracy .645.
"""

from ml_collections import ConfigDict

from mtmm_jax import training


def get_config() -> ConfigDict:
    config = training.load("joint_training")
    alone = ["category_image", "category_text"]
    config.model.regulariser_scale = 0.1
    config.model.regularisers = [
        {"kind": "agreement", "between": alone, "on": "outputs"},
        {"kind": "agreement", "between": ["image", "text"], "measure": "contrastive"},
        {"kind": "orthogonality", "between": ["fused", "audio"]},
        {"kind": "distance", "paths": [f"heads/{head}" for head in alone], "alpha": 0.1},
    ]
    return config
