r"""Video understanding at 32 pixels and 8 frames: video_understanding for a quick run.

python -m mtmm_jax.train --config configs/video_understanding_small.py \
    --workdir runs/video_understanding_small

300 steps. The mean over frames cannot tell motions apart that only their order does, so the event
stays near chance where a recurrence over frames learns it: baseline
--config.model.encoders.video.temporal=gru.
"""

from ml_collections import ConfigDict

from mtmm_jax import training


def get_config() -> ConfigDict:
    config = training.load("video_understanding")
    config.steps = 300
    config.data.frames = 8
    config.data.image_size = 32
    config.checkpoint.every = config.evaluation.every = 150
    return config
