"""Domain adaptation: what the target's own labels teach, the other end of the gap.

python -m mtmm_jax.train --config domain_target_only --workdir runs/domain_target_only

domain_source_only with Twemoji's drawings and their categories instead of Noto's.
"""

from ml_collections import ConfigDict

from mtmm_jax import training


def get_config() -> ConfigDict:
    config = training.load("domain_source_only")
    config.data.trained = ["twemoji"]
    del config.data.sources.twemoji.hide
    return config
