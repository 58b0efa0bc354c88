"""Video understanding: frames by a CNN, words by a GRU, five seconds of sound by convolutions.

python -m mtmm_jax.train --config video_understanding --workdir runs/video_understanding

Ten frames of 224 pixels, ImageNet's mean and spread taken out, through a CNN of 64 and 128
channels, and their mean; lower-cased, split words, 128 numbers each, through a GRU of 256; the
first 5.0 s of sound through Conv1D of 32 and 64 channels; what comes out is joined as it is, Linear
512, ten classes: what the moving emoji is. Adam 1e-3, batch 32, ten epochs of 95 steps; the loss
and the validation metrics are reported once an epoch. Needs an accelerator:
video_understanding_small is the preset of 32 pixels, video_folders reads clips of your own from
three folders. Baseline: each modality alone, which evaluation prints next to it.
"""

from ml_collections import ConfigDict

from mtmm_jax import training

EPOCH = 95  # steps: 3,022 clips in batches of 32


def get_config() -> ConfigDict:
    config = training.load("emoji")
    config.steps = 10 * EPOCH
    config.batch_size = 32
    config.data = {
        "kind": "emoji_clips",
        "frames": 10,
        "image_size": 224,
        "seconds": 5.0,
        "units": "words",
    }
    config.model.width = 512
    config.model.encoders = {
        "video": {
            "kind": "video_frames",
            "frame": {"kind": "cnn", "preset": "small", "pixels": "imagenet", "projected": False},
            "temporal": "mean",
            "projected": False,
        },
        "text": {
            "kind": "text_gru",
            "preset": "small",
            "embedding_width": 128,
            "bidirectional": False,
            "projected": False,
        },
        "audio": {"kind": "conv1d", "preset": "mini", "projected": False},
    }
    config.model.fusion = {"kind": "concat"}
    config.tasks = {"topic": {"kind": "classification"}}
    config.optimizer = {"kind": "adam", "learning_rate": 1e-3, "schedule": "constant"}
    config.evaluation.batch_size = 32  # as in training: clips of 224 pixels are large
    config.checkpoint.every = config.evaluation.every = config.evaluation.log_every = EPOCH
    return config
