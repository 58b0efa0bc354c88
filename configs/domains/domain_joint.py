"""Domain adaptation with labels of both: L = sum over source L_s + lambda sum over target L_t.

python -m mtmm_jax.train --config domain_joint --workdir runs/domain_joint

lambda is the target's share of the rows against the source's: a batch holds 1 : lambda of them, and
its loss is their mean. Here 1; --config.data.mixing.weights=[1,0.25] is another. All of Twemoji's
categories are known; --config.data.sources.twemoji.hide.category=0.1 leaves a tenth. Baselines:
domain_source_only and domain_target_only.
"""

from ml_collections import ConfigDict

from mtmm_jax import training

LAMBDA = 1.0


def get_config() -> ConfigDict:
    config = training.load("domain_source_only")
    config.data.trained, config.batch_size = ["noto", "twemoji"], 128
    config.data.mixing = {"kind": "fixed", "weights": [1.0, LAMBDA]}
    config.data.sources.twemoji.hide = {"category": 1.0}
    return config
