r"""Pretraining without labels, autoencoding: the picture from what fusion kept of it.

python -m mtmm_jax.train --config pretrain_autoencoding \
    --workdir runs/pretrain_autoencoding
python -m mtmm_jax.train --config finetune --workdir runs/finetune_autoencoding \
    --config.init_from.workdir=runs/pretrain_autoencoding

L = |x_image - g(fused)|^2 / 2 on 16 x 16 pixels, 400 steps; where modality dropout takes the
picture away it has to come from name and voice. Baseline of the second command: from scratch,
few_labels with --config.tasks.retrieval=None.
"""

from ml_collections import ConfigDict

from mtmm_jax import training


def get_config() -> ConfigDict:
    config = training.load("emoji")
    config.steps = 400
    config.tasks = {"image": {"kind": "reconstruction", "reads": "fused"}}
    config.checkpoint.every = config.evaluation.every = 200
    return config
