"""Cross-modal learning: pictures, names and speech in one space, no class label used.

python -m mtmm_jax.train --config contrastive --workdir runs/contrastive

Contrastive alignment of picture with name and of name with speech, 400 steps. Measured: recall both
ways, and zero-shot classification, where the class is the category whose name is nearest to the
picture. Baselines: chance, and a classifier that has labels (independent_image).

Measured (test, 3 seeds, 116 s each with one of two cores): retrieval image to text recall@10 .274 ±
.018, retrieval, text to image recall@10 .238 ± .009, retrieval, text to audio recall@10 .294 ±
.015, retrieval, audio to text recall@10 .317 ± .024, category, zero-shot accuracy .295 ± .044,
subcategory, zero-shot accuracy .024 ± .003. Trivial predictions and baselines: configs/README.md.
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
