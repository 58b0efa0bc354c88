"""Made-up data with knobs: here a target that only two modalities together tell (XOR).

python -m mtmm_jax.train --config configs/generator.py --workdir runs/generator
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "seed": 0,
            "steps": 600,
            "batch_size": 128,
            "devices": 1,
            "data": {
                "kind": "generator",
                "modalities": 2,
                "redundancy": 0.0,
                "uniqueness": 0.0,
                "synergy": 1.0,
                "tasks": 2,
                "noise": 0.3,
            },
            "model": {
                "width": 32,
                "encoders": {"m1": {"kind": "table_mlp"}, "m2": {"kind": "table_mlp"}},
                "fusion": {"kind": "bottleneck"},
                "sharing": {"kind": "hard"},
                "modality_dropout": 0.0,
            },
            "tasks": {"synergy": {"kind": "classification"}},
            "balancing": {"kind": "equal"},
            "optimizer": {
                "kind": "adamw",
                "learning_rate": 3e-3,
                "schedule": "cosine",
                "warmup": 0.05,
                "weight_decay": 0.01,
                "clip": 1.0,
            },
            "checkpoint": {"every": 200, "keep": 1, "best": "mean"},
            "evaluation": {"every": 200, "batch_size": 256, "log_every": 20, "baselines": True},
        }
    )
