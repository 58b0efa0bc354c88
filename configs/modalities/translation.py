"""Modality translation: the picture is drawn from the name, and from the voice that says it.

python -m mtmm_jax.train --config translation --workdir runs/translation

L = |x_image - g_m(text or audio)|^2 on 16 x 16 pixels, each from one modality. Not augmented:
no name tells a random background. Baseline: the mean picture (an r2 of 0).

Measured (test, 3 seeds, 65 s each with one of two cores): from audio r2 .073 ± .006, from text r2
.174 ± .011. Trivial predictions and baselines: configs/README.md.
"""

from ml_collections import ConfigDict

from mtmm_jax import training


def get_config() -> ConfigDict:
    config = training.load("contrastive")
    config.tasks = {
        "from_text": {"kind": "reconstruction", "modality": "image", "reads": "text"},
        "from_audio": {"kind": "reconstruction", "modality": "image", "reads": "audio"},
    }
    del config.model.encoders.image
    config.data.augment = False
    return config
