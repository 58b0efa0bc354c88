"""Both domains' features get the same distribution, by kernels (MMD; Long et al. 2015).

python -m mtmm_jax.train --config domain_mmd --workdir runs/domain_mmd

L = L_category(Noto) + alpha (mean k(s, s') + mean k(t, t') - 2 mean k(s, t)), over
the encoder's pooled features. Twemoji has no category in training. Baseline: domain_source_only.
"""

from ml_collections import ConfigDict

from mtmm_jax import training


def get_config() -> ConfigDict:
    config = training.load("domain_source_only")
    config.data.trained, config.batch_size = ["noto", "twemoji"], 128
    config.model.regularisers = [
        {"kind": "mmd", "between": ["noto", "twemoji"], "on": "image", "alpha": 1.0},
    ]
    return config
