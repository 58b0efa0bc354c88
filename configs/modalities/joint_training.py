"""Joint training: every modality has a network and a loss of its own, next to the fused one.

python -m mtmm_jax.train --config joint_training --workdir runs/joint_training

L = sum over tasks and modalities of L_k(x_m), plus those of the fused features: `unimodal` gives
each task a head for every modality alone. Baseline: fusion_late, with the fused losses only.

Measured (test, 3 seeds, 55 s each with one of two cores): category accuracy .883 ± .013, category
audio accuracy .406 ± .011, category image accuracy .582 ± .002, category text accuracy .852 ± .008,
subcategory accuracy .673 ± .010, subcategory audio accuracy .223 ± .004. Trivial predictions and
baselines: configs/README.md.
"""

from ml_collections import ConfigDict

from mtmm_jax import training


def get_config() -> ConfigDict:
    config = training.load("fusion_late")
    config.balancing = {"kind": "equal", "reduction": "sum"}
    for task in config.tasks.values():
        task.unimodal = True
    return config
