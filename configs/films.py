"""17,472 films from their texts and numbers: five tasks, most labels missing.

python -m mtmm_jax.train --config configs/films.py --workdir runs/films

Test, three seeds, together / each task alone (`python -m mtmm_jax.benchmarks.tables.singles
--config films`): Tomatometer R2 .225 +- .002 / .237 +- .005 (known: .18 to .21), Metacritic R2
.316 +- .009 / .306 +- .015, box office R2 .422 +- .006 / .405 +- .018, rating accuracy
.579 +- .029 / .568 +- .008 (majority .467), genres' average precision .291 +- .003 / .355 +-
.006: genres, the one task that all films have a label of, learn better alone.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "seed": 0,
            "steps": 1000,
            "batch_size": 128,
            "devices": 1,
            "data": {"kind": "films"},
            "model": {
                "width": 128,
                "encoders": {
                    "text": {"kind": "text_bag", "word_dropout": 0.6, "dropout": 0.4},
                    "table": {"kind": "table_mlp"},
                },
                "fusion": {"kind": "concat"},
                "sharing": {"kind": "hard"},
                "modality_dropout": 0.1,
            },
            "tasks": {
                "genre": {"kind": "multilabel"},
                "tomatometer": {"kind": "regression"},
                "metacritic": {"kind": "regression"},
                "rating": {"kind": "classification"},
                "box_office": {"kind": "regression"},
            },
            # In the order of the tasks' names. The genres' loss is a mean over 21 classes.
            "balancing": {"kind": "static", "weights": [1.0, 10.0, 1.0, 1.0, 1.0]},
            "optimizer": {
                "kind": "adamw",
                "learning_rate": 2e-3,
                "schedule": "cosine",
                "warmup": 0.05,
                "weight_decay": 1.0,
                "clip": 1.0,
            },
            "checkpoint": {"every": 250, "keep": 1, "best": "mean"},
            "evaluation": {"every": 250, "batch_size": 512, "log_every": 50, "baselines": True},
        }
    )
