"""Video understanding aligned in time: a Transformer over seconds; classes and a box.

python -m mtmm_jax.train --config configs/video_aligned.py --workdir runs/video_aligned

The clips of scenario_video: sound and subtitles are brought to the frames' times, a Transformer
reads the tokens of all, L = L_topic + L_sentiment + L_where, the last the detection loss of the
thing's last place. Baseline: without alignment, --config.model.align=none.
"""

from ml_collections import ConfigDict

from mtmm_jax import training


def get_config() -> ConfigDict:
    config = training.load("scenario_video")
    config.model.align = {"kind": "resample", "reference": "video"}
    config.model.fusion = {"kind": "transformer_tokens", "layers": 1, "heads": 4}
    del config.tasks.score
    config.tasks.where = {
        "kind": "detection",
        "head": {"kind": "queries", "queries": 4, "width": 64},
    }
    return config
