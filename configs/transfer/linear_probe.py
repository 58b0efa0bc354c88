r"""A linear probe: what a trained model's features say of another label, without moving them.

python -m mtmm_jax.train --config linear_probe --workdir runs/probe \
    --config.init_from.workdir=runs/emoji

Encoders and fusion come from a run of emoji and stay as they are; one linear head learns to tell
the drawing style, which that run was never asked. Baseline: the same head over encoders as they
were drawn, --config.init_from=None --config.optimizer.freeze="['(encoders|fusion)/.*']".
"""

from ml_collections import ConfigDict

from mtmm_jax import training


def get_config() -> ConfigDict:
    config = training.load("emoji")
    with config.unlocked(), config.ignore_type():
        config.init_from = ConfigDict(
            {
                "workdir": "runs/emoji",
                "map": [[r"(encoders|fusion)/.*", r"\g<0>"]],
                "freeze": ["(encoders|fusion)/.*"],
            }
        )
        config.tasks = ConfigDict({"style": {"kind": "classification"}})
    config.model.modality_dropout = 0.0
    config.optimizer.weight_decay = 0.0
    config.steps = 200
    config.checkpoint.every = config.evaluation.every = 100
    return config
