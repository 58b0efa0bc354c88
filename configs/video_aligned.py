"""Video understanding aligned in time: a Transformer over seconds; classes and a box.

python -m mtmm_jax.train --config configs/video_aligned.py --workdir runs/video_aligned

The clips, words and sounds of video_understanding_small. Frames keep their order (a GRU, no mean)
and tell what is where (4 x 4 cells); sound, and the words of the caption, one a second, are brought
to the frames' times; a Transformer reads the tokens of all. L = L_topic + L_event + L_where:
cross-entropies of what moves and how, and the detection loss of its last place, cross-entropy +
squared error of the box. Baseline: without alignment, --config.model.align=none.

Measured (test, one seed, 6 minutes each with one of two cores): event accuracy .110, topic accuracy
.633, where mAP@.5 .003; trivial: event accuracy .133, topic accuracy .189, where mAP@.5 .002; not
aligned: event accuracy .107, topic accuracy .592, where mAP@.5 .002; topic alone: topic accuracy
.633.
"""

from ml_collections import ConfigDict

from mtmm_jax import training


def get_config() -> ConfigDict:
    config = training.load("video_understanding_small")
    config.model.width = 128
    for encoder in config.model.encoders.values():
        encoder.projected = True
    config.model.encoders.video.temporal = "gru"
    with config.unlocked():
        config.model.encoders.video.cells = 4
    config.model.align = {"kind": "resample", "reference": "video", "kernel": 0.25}
    config.model.fusion = {"kind": "transformer_tokens", "layers": 1, "heads": 4}
    config.tasks = {
        "topic": {"kind": "classification"},
        "event": {"kind": "classification"},
        "where": {
            "kind": "detection",
            "head": {"kind": "queries", "queries": 4, "width": 64},
            "box_loss": "mse",
        },
    }
    return config
