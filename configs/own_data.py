"""The base of configs for your own table, which `data.inspect.check TABLE --write OWN.py` writes.

python -m mtmm_jax.train --config configs/own_data.py --workdir runs/own_data

A network of all inputs, linear models of fixed features (n-grams, gradients, spectra, columns), and
for each task the mixture of both that is best on validation. Training stops when the mean skill
over the trivial predictor (`evaluation.skill`) stands still. By itself it learns digits from two
views; a written config sets `data`, `model.encoders`, `tasks` and `steps`.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "seed": 0,
            "steps": 600,
            "batch_size": 64,
            "devices": 1,
            "data": {"kind": "digits"},
            "model": {
                "width": 96,
                "encoders": {"pix": {"kind": "table_columns"}, "fou": {"kind": "table_columns"}},
                "fusion": {"kind": "concat"},
                "sharing": {"kind": "hard"},
                "modality_dropout": 0.2,
                "linear": True,
            },
            "tasks": {"digit": {"kind": "classification"}},
            "balancing": {"kind": "equal"},
            "optimizer": {
                "kind": "adamw",
                "learning_rate": 2e-3,
                "schedule": "cosine",
                "warmup": 0.05,
                "weight_decay": 0.05,
                "clip": 1.0,
            },
            "checkpoint": {"every": 50, "keep": 1, "best": "skill"},
            "evaluation": {"every": 50, "batch_size": 128, "log_every": 10, "baselines": True},
            "stopping": {"patience": 6},
        }
    )
