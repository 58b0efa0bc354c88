"""See it, name it, hear it: emoji from picture, name and speech; four tasks, one model.

python -m mtmm_jax.train --config configs/emoji.py --workdir runs/emoji

Baselines, at equal compute: each task alone for a quarter of the steps, such as --config.steps=250
--config.tasks.subcategory=None --config.tasks.year=None --config.tasks.retrieval=None; and each
modality alone, --config.model.modality_dropout=0.0 --config.tasks.retrieval=None
--config.model.encoders.text=None --config.model.encoders.audio=None and so on.

Measured (test, one seed, 4 minutes each with one of two cores): category accuracy .872, retrieval
image_to_text_recall@10 .457, retrieval, text_to_image_recall@10 .459, subcategory accuracy .765,
year r2 .288; trivial: category accuracy .189, retrieval image_to_text_recall@10 .051, retrieval,
text_to_image_recall@10 .051, subcategory accuracy .148, year r2 -.012; category alone: category
accuracy .844; subcategory alone: subcategory accuracy .740; year alone: year r2 .262; retrieval
alone: retrieval image_to_text_recall@10 .281, retrieval, text_to_image_recall@10 .224; image alone:
category accuracy .638, subcategory accuracy .431, year r2 .148; text alone: category accuracy .827,
subcategory accuracy .689, year r2 .181; audio alone: category accuracy .520, subcategory accuracy
.324, year r2 .077.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "seed": 0,
            "steps": 1000,
            "batch_size": 64,
            "devices": 1,
            "data": {"kind": "emoji", "text": "name+keywords", "text_length": 32},
            "model": {
                "width": 128,
                "encoders": {
                    "image": {"kind": "resnet", "preset": "tiny", "stem_kind": "half"},
                    "text": {"kind": "text_gru", "preset": "tiny", "word_dropout": 0.2},
                    "audio": {"kind": "log_mel_cnn", "preset": "tiny"},
                },
                "fusion": {"kind": "concat"},
                "sharing": {"kind": "hard"},
                "modality_dropout": 0.3,
            },
            "tasks": {
                "category": {"kind": "classification"},
                "subcategory": {"kind": "classification"},
                "year": {"kind": "regression"},
                "retrieval": {"kind": "retrieval", "reads": ["image", "text"]},
            },
            "balancing": {"kind": "equal"},
            "optimizer": {
                "kind": "adamw",
                "learning_rate": 2e-3,
                "schedule": "cosine",
                "warmup": 0.05,
                "weight_decay": 0.05,
                "clip": 1.0,
            },
            "checkpoint": {"every": 250, "keep": 1, "best": "mean"},
            "evaluation": {"every": 250, "batch_size": 128, "log_every": 10, "baselines": True},
        }
    )
