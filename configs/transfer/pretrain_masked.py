r"""Pretraining without labels, masked: half of a picture from its other half, name and voice.

python -m mtmm_jax.train --config pretrain_masked --workdir runs/pretrain_masked
python -m mtmm_jax.train --config finetune --workdir runs/finetune_masked \
    --config.init_from.workdir=runs/pretrain_masked

L = mean over the hidden patches of |x - g(fused)|^2 / 2, half of the patches of 8 x 8 pixels hidden
in each step, 400 steps; whole modalities are hidden as well (modality dropout). Baseline of the
second command: from scratch, few_labels with --config.tasks.retrieval=None.
"""

from ml_collections import ConfigDict

from mtmm_jax import training


def get_config() -> ConfigDict:
    config = training.load("pretrain_autoencoding")
    config.tasks.image.hide = 0.5
    config.tasks.image.patch = 8
    return config
