r"""Pretraining without labels, contrastive: which picture, name and voice belong together.

python -m mtmm_jax.train --config pretrain_contrastive \
    --workdir runs/pretrain_contrastive
python -m mtmm_jax.train --config finetune --workdir runs/finetune

contrastive with the encoders and the data of few_labels, 400 steps; then finetune. Baseline of the
latter: from scratch, few_labels with --config.tasks.retrieval=None.
"""

from ml_collections import ConfigDict

from mtmm_jax import training


def get_config() -> ConfigDict:
    config = training.load("contrastive")
    config.checkpoint.best = "mean"
    return config
