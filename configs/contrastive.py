"""Cross-modal learning: pictures, names and speech in one space, no class label used.

python -m mtmm_jax.train --config configs/contrastive.py --workdir runs/contrastive

Contrastive alignment of picture with name and of name with speech, 400 steps. Measured: recall both
ways, and zero-shot classification, where the class is the category whose name is nearest to the
picture. Baselines: chance, and a classifier that has labels (independent_image).
"""

from ml_collections import ConfigDict

from mtmm_jax import training


def get_config() -> ConfigDict:
    config = training.load("emoji")
    config.steps = 400
    config.model.modality_dropout = 0.0
    config.tasks = {"retrieval": {"kind": "retrieval", "reads": ["image", "text", "audio"]}}
    config.checkpoint.every = config.evaluation.every = 200
    return config
