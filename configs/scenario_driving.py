"""Driving: camera, range and a spoken command; what is ahead, what to do, and where to go.

python -m mtmm_jax.train --config configs/scenario_driving.py --workdir runs/scenario_driving

Made-up rows (data/scenario_worlds.py): coloured shapes, a closing gap, a tone for each command.
Detection from the camera, command, waypoints, behaviour and control from all; 400 steps, a sensor
hidden from fusion now and then. The other scenario_* configs are this one with other sensors and
tasks. Baselines: one sensor less, in the same model; and a model of each sensor alone, such as
--config.model.encoders.range=None --config.model.encoders.voice=None
--config.model.modality_dropout=0.0.
"""

from ml_collections import ConfigDict

from mtmm_jax import training


def get_config() -> ConfigDict:
    config = training.load("generator")
    config.steps = 400
    config.batch_size = 64
    config.data = {"kind": "scenarios", "scenario": "driving"}
    config.model.width = 64
    config.model.modality_dropout = 0.2
    config.model.encoders = {
        "camera": {"kind": "cnn", "preset": "tiny", "norm": "batch"},
        "range": {"kind": "series_gru"},
        "voice": {"kind": "conv1d"},
    }
    config.model.fusion = {"kind": "concat", "hidden": 64}
    config.tasks = {
        "objects": {
            "kind": "detection",
            "reads": "camera",
            "head": {"kind": "centres", "modality": "camera"},
        },
        "command": {"kind": "classification"},
        "waypoints": {"kind": "waypoints"},
        "behaviour": {"kind": "classification"},
        "control": {"kind": "regression"},
    }
    return config
