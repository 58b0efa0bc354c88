"""2,000 handwritten digits in six views, each a table: what a fusion is worth.

python -m mtmm_jax.train --config configs/digits.py --workdir runs/digits
"""

from ml_collections import ConfigDict

VIEWS = ("fou", "fac", "kar", "pix", "zer", "mor")


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "seed": 0,
            "steps": 600,
            "batch_size": 64,
            "devices": 1,
            "data": {"kind": "digits"},
            "model": {
                "width": 64,
                "encoders": {view: {"kind": "table_mlp"} for view in VIEWS},
                "fusion": {"kind": "concat"},
                "sharing": {"kind": "hard"},
                "modality_dropout": 0.0,
            },
            "tasks": {"digit": {"kind": "classification"}},
            "balancing": {"kind": "equal"},
            "optimizer": {
                "kind": "adamw",
                "learning_rate": 1e-3,
                "schedule": "cosine",
                "warmup": 0.05,
                "weight_decay": 0.05,
                "clip": 1.0,
            },
            "checkpoint": {"every": 200, "keep": 1, "best": "mean"},
            "evaluation": {"every": 200, "batch_size": 200, "log_every": 20, "baselines": True},
        }
    )
