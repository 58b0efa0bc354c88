"""At home: a voice, a camera and sensors; what is wanted, who wants it, and how warm.

python -m mtmm_jax.train --config configs/scenario_home.py --workdir runs/scenario_home

Synthetic as in scenario_driving. Voices shift the words' tones, so that command and speaker explain
each other; the preference needs the sensors too. Baselines, as there: one sensor less, in the same
model; and a model of each sensor alone.

Measured (test, one seed, 88 s each with one of two cores): command accuracy 1.000, preference r2
.989, speaker accuracy 1.000; trivial: command accuracy .256, preference r2 -.000, speaker accuracy
.340; voice alone: command accuracy .801, preference r2 .176, speaker accuracy .818; image alone:
command accuracy .203, preference r2 .551, speaker accuracy 1.000; sensors alone: command accuracy
.277, preference r2 .352, speaker accuracy .312; without image: command accuracy .836, preference r2
.549, speaker accuracy .809; without sensors: command accuracy 1.000, preference r2 .547, speaker
accuracy 1.000; without voice: command accuracy .305, preference r2 .990, speaker accuracy 1.000.
"""

from ml_collections import ConfigDict

from mtmm_jax import training


def get_config() -> ConfigDict:
    config = training.load("scenario_driving")
    config.data.scenario = "home"
    config.model.encoders = {
        "voice": {"kind": "conv1d"},
        "image": {"kind": "cnn", "preset": "tiny", "norm": "batch"},
        "sensors": {"kind": "series_gru"},
    }
    config.tasks = {
        "command": {"kind": "classification"},
        "speaker": {"kind": "classification"},
        "preference": {"kind": "regression"},
    }
    return config
