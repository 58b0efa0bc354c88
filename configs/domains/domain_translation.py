"""Adversarial modality translation together with the labels of one domain: a name is drawn in both
styles.

python -m mtmm_jax.train --config domain_translation --workdir runs/domain_translation

The picture is drawn from the name (modality translation), and again from its own features
(as in Ghifary et al. 2016), 16 x 16 pixels each; critics tell drawn from real, and are to be fooled
in the same step. L = L_category(Noto) + sum of both drawings' losses, Noto's and Twemoji's, which
has no category in training. Baseline: domain_source_only.
"""

from ml_collections import ConfigDict

from mtmm_jax import training


def get_config() -> ConfigDict:
    config = training.load("domain_source_only")
    config.data.trained, config.batch_size = ["noto", "twemoji"], 128
    config.model.encoders.text = training.load("emoji").model.encoders.text
    drawn = {"kind": "reconstruction", "modality": "image", "adversarial": {"weight": 0.1}}
    config.tasks.from_text = {**drawn, "reads": "text"}
    config.tasks.from_image = {**drawn, "reads": "image"}
    config.checkpoint.best = "category"
    return config
