"""Traffic: a camera, radar and counters in the road; vehicles, flow and accidents.

python -m mtmm_jax.train --config scenario_traffic --workdir runs/scenario_traffic

Synthetic as in scenario_driving. A sudden stop is an accident only where there are vehicles: radar
and camera together. Baselines, as there: one sensor less, in the same model; and a model of each
sensor alone.

Measured (test, 3 seeds, 57 s each with one of two cores): accident accuracy .993 ± .001, flow r2
.977 ± .002, vehicles mAP@.5 .969 ± .002; trivial: accident accuracy .656, flow r2 -.010, vehicles
mAP@.5 .000; camera alone: accident accuracy .656 ± .000, flow r2 .196 ± .005, vehicles mAP@.5 .972
± .003†; radar alone: accident accuracy .939 ± .000, flow r2 .529 ± .002; sensors alone: accident
accuracy .957 ± .002, flow r2 .953 ± .000; without camera: accident accuracy .978 ± .004, flow r2
.980 ± .003, vehicles mAP@.5 -; without radar: accident accuracy .964 ± .006, flow r2 .937 ± .004,
vehicles mAP@.5 .969 ± .002; without sensors: accident accuracy .982 ± .002, flow r2 .806 ± .001,
vehicles mAP@.5 .969 ± .002.
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
