"""Joint training: every modality has a network and a loss of its own, beside the fused one.

python -m mtmm_jax.train --config configs/joint_training.py --workdir runs/joint_training

L = sum over tasks and modalities of L_k(x_m), plus those of the fused features: `unimodal` gives
each task a head for every modality alone. Baseline: fusion_late, with the fused losses only.
"""

from ml_collections import ConfigDict

from mtmm_jax import training


def get_config() -> ConfigDict:
    config = training.load("fusion_late")
    config.balancing = {"kind": "equal", "reduction": "sum"}
    for task in config.tasks.values():
        task.unimodal = True
    return config
