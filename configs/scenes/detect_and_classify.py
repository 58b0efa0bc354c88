"""Detection and classification over one CNN: cross-entropy, and squared errors of the boxes.

python -m mtmm_jax.train --config detect_and_classify --workdir runs/detect_and_classify

One to three emoji on 48 pixels: a box and a class for each (mAP), and which categories are there
(average precision, and exact_match: the share of pictures of which every category is right), 400
steps. L = L_class + |box - box*|^2, and a cross-entropy for each category. Baseline: each task
alone, --config.tasks.boxes=None or --config.tasks.present_categories=None.

Measured (test, 3 seeds, 3 minutes each with one of two cores): boxes mAP@.5 .204 ± .020, present
categories average precision .265 ± .002, present categories, exact match .000 ± .000. Trivial
predictions and baselines: configs/README.md.
"""

from ml_collections import ConfigDict

from mtmm_jax import training


def get_config() -> ConfigDict:
    config = training.load("emoji_scenes")
    config.steps = 400
    config.data = {"kind": "emoji_scenes", "image_size": 48, "most": 3}
    config.model.encoders.image = {"kind": "cnn", "preset": "small", "norm": "batch"}
    del config.tasks.count
    config.tasks.boxes.class_loss = "cross_entropy"
    config.tasks.boxes.box_loss = "mse"
    config.checkpoint.every = config.evaluation.every = 200
    config.checkpoint.best = "mean"
    return config
