"""At home: a voice, a camera and sensors; what is wanted, who wants it, and how warm.

python -m mtmm_jax.train --config scenario_home --workdir runs/scenario_home

Synthetic as in scenario_driving. Voices shift the words' tones, so that command and speaker explain
each other; the preference needs the sensors too. Baselines, as there: one sensor less, in the same
model; and a model of each sensor alone.

Measured (test, 3 seeds, 44 s each with one of two cores): command accuracy 1.000 ± .000, preference
r2 .990 ± .001, speaker accuracy 1.000 ± .000; trivial: command accuracy .256, preference r2 -.000,
speaker accuracy .340; voice alone: command accuracy .804 ± .004, preference r2 .178 ± .005, speaker
accuracy .811 ± .004; image alone: command accuracy .244 ± .030, preference r2 .551 ± .000, speaker
accuracy 1.000 ± .000; sensors alone: command accuracy .291 ± .010, preference r2 .352 ± .001,
speaker accuracy .315 ± .005; without image: command accuracy .817 ± .011, preference r2 .552 ±
.002, speaker accuracy .799 ± .007; without sensors: command accuracy 1.000 ± .000, preference r2
.546 ± .003, speaker accuracy 1.000 ± .000; without voice: command accuracy .260 ± .036, preference
r2 .992 ± .001, speaker accuracy 1.000 ± .000.
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
