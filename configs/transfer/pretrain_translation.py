r"""Pretraining without labels, translation: the picture drawn from the name, and from the voice.

python -m mtmm_jax.train --config pretrain_translation \
    --workdir runs/pretrain_translation
python -m mtmm_jax.train --config finetune --workdir runs/finetune_translation \
    --config.init_from.workdir=runs/pretrain_translation

translation, 400 steps; only the encoders of text and audio learn. Baseline of the second command:
from scratch, few_labels with --config.tasks.retrieval=None.
"""

from ml_collections import ConfigDict

from mtmm_jax import training


def get_config() -> ConfigDict:
    return training.load("translation")
