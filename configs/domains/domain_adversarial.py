"""Domain-adversarial training: features that do not tell whose drawing it is (Ganin et al. 2016).

python -m mtmm_jax.train --config domain_adversarial --workdir runs/domain_adversarial

L = L_category(Noto) + L_origin(both), the origin's gradient turned round on its way from the head
into the encoder, and scaled from 0 to 1 over the first half of the steps. Twemoji has no category
in training. Baseline: domain_source_only.
"""

from ml_collections import ConfigDict

from mtmm_jax import training


def get_config() -> ConfigDict:
    config = training.load("domain_source_only")
    config.data.trained, config.batch_size = ["noto", "twemoji"], 128
    config.tasks.origin = {
        "kind": "classification",
        "reads": "image",
        "head": {"kind": "vector", "hidden": 64},
        "reverse": {"scale": 1.0, "ramp": config.steps // 2},
    }
    config.checkpoint.best = "category"
    return config
