r"""Pretraining without labels: hidden words of a name from the others, picture and voice.

python -m mtmm_jax.train --config pretrain_words --workdir runs/pretrain_words
python -m mtmm_jax.train --config finetune --workdir runs/finetune_words \
    --config.init_from.workdir=runs/pretrain_words

pretrain_contrastive, and L = -mean over the hidden words of log p(word | fused), half of the words
hidden in each step; the whole text is hidden as well (modality dropout), so that picture and voice
learn which words go with them. 1200 steps: after 400 a tenth of the labels gained no more by it
than by pretrain_contrastive (seed 0, .533 and .561). Baseline of the second command: from scratch,
few_labels with --config.tasks.retrieval=None.
"""

from ml_collections import ConfigDict

from mtmm_jax import training


def get_config() -> ConfigDict:
    config = training.load("pretrain_contrastive")
    config.steps = 1200
    config.checkpoint.every = config.evaluation.every = 400
    config.model.modality_dropout = 0.3
    with config.unlocked():
        config.tasks.text = {"kind": "words", "reads": "fused", "hide": 0.5}
    return config
