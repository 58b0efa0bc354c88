"""Task relatedness: what helps whom is measured first; weights and groups are made of it.

python -m mtmm_jax.train --config configs/task_relatedness.py --workdir runs/task_relatedness

Five tasks on films. In 20 steps of a model of its own, every task shows what its step does to the
others' losses: an affinity matrix, in the report as a heat map. Then the run begins: a task counts
by what it does for all, and tasks stand in two groups at most, each with its own sharing stage.
400 steps. Baseline: equal weights and one stage for all, --config.relatedness=None.
"""

from ml_collections import ConfigDict

from mtmm_jax import training


def get_config() -> ConfigDict:
    config = training.load("weights_static")
    config.balancing = {"kind": "equal"}
    config.relatedness = {"steps": 20, "use": "both", "groups": 2}
    return config
