r"""Gradual unfreezing: a trained model is tuned from its heads down, low layers last and slowest.

python -m mtmm_jax.train --config unfreeze --workdir runs/unfreeze \
    --config.init_from.workdir=runs/emoji

Everything but the heads comes from a run of emoji. Heads and sharing learn from the first step,
fusion from step 50, encoders from step 100, each layer at .8 of the rate of the one above it.
Baseline: all at once, --config.optimizer.unfreeze="[]" --config.optimizer.depth_decay=None.
"""

from ml_collections import ConfigDict

from mtmm_jax import training


def get_config() -> ConfigDict:
    config = training.load("emoji")
    with config.unlocked():
        config.init_from = ConfigDict(
            {"workdir": "runs/emoji", "map": [[r"(encoders|fusion|sharing)/.*", r"\g<0>"]]}
        )
        config.optimizer.unfreeze = [["fusion/.*", 50], ["encoders/.*", 100]]
        config.optimizer.depth_decay = 0.8
    config.optimizer.learning_rate = 5e-4
    config.steps = 300
    config.checkpoint.every = config.evaluation.every = 100
    return config
