r"""Sequential transfer: first the source, then the target with labels of its own.

python -m mtmm_jax.train --config domain_source_only --workdir runs/domain_source_only
python -m mtmm_jax.train --config domain_sequential --workdir runs/domain_sequential

Begins with the parameters and batch statistics of the first run (`init_from`), and continues with
Twemoji's drawings and a tenth of their categories, 100 steps at a fifth of the rate. Baselines: the
first run, domain_joint, and the same labels from scratch, --config.init_from=None.
"""

from ml_collections import ConfigDict

from mtmm_jax import training


def get_config() -> ConfigDict:
    config = training.load("domain_target_only")
    config.steps = 100
    config.optimizer.learning_rate /= 5
    config.data.sources.twemoji.hide = {"category": 0.1}
    config.init_from = {"workdir": "runs/domain_source_only"}
    config.checkpoint.every = config.evaluation.every = 50
    return config
