"""Deep CORAL: both domains' features get the same means and covariances (Sun and Saenko 2016).

python -m mtmm_jax.train --config domain_coral --workdir runs/domain_coral

L = L_category(Noto) + alpha (|C_s - C_t|^2 / 4 D^2 + |m_s - m_t|^2 / D), over
the encoder's pooled features. Twemoji has no category in training. Baseline: domain_source_only.
"""

from ml_collections import ConfigDict

from mtmm_jax import training


def get_config() -> ConfigDict:
    config = training.load("domain_source_only")
    config.data.trained, config.batch_size = ["noto", "twemoji"], 128
    config.model.regularisers = [
        {"kind": "coral", "between": ["noto", "twemoji"], "on": "image", "alpha": 10.0},
    ]
    return config
