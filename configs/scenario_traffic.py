"""Traffic: a camera, radar and counters in the road; vehicles, flow and accidents.

python -m mtmm_jax.train --config configs/scenario_traffic.py --workdir runs/scenario_traffic

Synthetic as in scenario_driving. A sudden stop is an accident only where there are vehicles: radar
and camera together. Baselines, as there: one sensor less, in the same model; and a model of each
sensor alone.

Measured (test, one seed, 108 s each with one of two cores): accident accuracy .992, flow r2 .977,
vehicles mAP@.5 .970; trivial: accident accuracy .656, flow r2 -.010, vehicles mAP@.5 .000; camera
alone: accident accuracy .656, flow r2 .191, vehicles mAP@.5 .975†; radar alone: accident accuracy
.939, flow r2 .530; sensors alone: accident accuracy .963, flow r2 .954; without camera: accident
accuracy .977, flow r2 .981, vehicles mAP@.5 -; without radar: accident accuracy .965, flow r2 .942,
vehicles mAP@.5 .970; without sensors: accident accuracy .980, flow r2 .804, vehicles mAP@.5 .970.
"""

from ml_collections import ConfigDict

from mtmm_jax import training


def get_config() -> ConfigDict:
    config = training.load("scenario_driving")
    config.data.scenario = "traffic"
    config.model.encoders = {
        "camera": {"kind": "cnn", "preset": "tiny", "norm": "batch"},
        "radar": {"kind": "series_gru"},
        "sensors": {"kind": "series_gru"},
    }
    config.tasks = {
        "vehicles": config.tasks.objects,
        "flow": {"kind": "regression"},
        "accident": {"kind": "classification"},
    }
    return config
