r"""Isolated tasks: each has an adapter of its own over features that none of them moves.

python -m mtmm_jax.train --config isolated_features --workdir runs/isolated \
    --config.init_from.workdir=runs/emoji

Encoders and fusion are those of a run of emoji and stay; an adapter and a head learn for each
task, and no task's gradient reaches what another reads (tests/transfer/test_lora.py). Tasks can so
be added or taken away without a change to the others. Baseline: emoji, where all share and move the
same features.
"""

from ml_collections import ConfigDict

from mtmm_jax import training


def get_config() -> ConfigDict:
    config = training.load("emoji")
    with config.unlocked():
        config.init_from = ConfigDict({"workdir": "runs/emoji"})
        config.optimizer.freeze = ["encoders/.*", "fusion/.*"]
        config.model.sharing = ConfigDict({"kind": "adapter", "size": 32})
        del config.tasks.retrieval  # reads encoders, not what is fused
    config.steps = 300
    config.checkpoint.every = config.evaluation.every = 100
    return config
