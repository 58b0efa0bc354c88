"""Video understanding: frames by a CNN, words by a GRU, five seconds of sound by convolutions.

python -m mtmm_jax.train --config configs/video_understanding.py --workdir runs/video_understanding

CNN of 64 and 128 channels and the mean over frames; words, split, through a GRU of 256; 5.0 s of
audio through Conv1D of 32, 64 and 64 channels; features joined, Linear 512, classes. Adam 1e-3,
batch 32, ten epochs. What happens (8 kinds of motion) and to what (9 categories), on clips of
moving emoji. For clips of your own in three folders: video_folders. video_understanding_small is
the preset for a CPU. Baseline: each modality alone, which evaluation prints beside it.
"""

from ml_collections import ConfigDict

from mtmm_jax import training


def get_config() -> ConfigDict:
    config = training.load("emoji")
    config.steps = 950
    config.batch_size = 32
    config.data = {"kind": "emoji_clips", "frames": 16, "image_size": 64, "seconds": 5.0}
    config.model.encoders = {
        "video": {
            "kind": "video_frames",
            "frame": {"kind": "cnn", "preset": "small"},
            "temporal": "mean",
        },
        "text": {"kind": "text_gru", "preset": "small"},
        "audio": {"kind": "conv1d", "preset": "tiny"},
    }
    config.model.fusion = {"kind": "concat", "hidden": 512}
    config.tasks = {"event": {"kind": "classification"}, "category": {"kind": "classification"}}
    config.optimizer = {"kind": "adam", "learning_rate": 1e-3, "schedule": "constant"}
    return config
