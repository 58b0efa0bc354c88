r"""Both: pretrained without labels, then a tenth of the labels and pseudo-labels for the rest.

python -m mtmm_jax.train --config pretrain_contrastive \
    --workdir runs/pretrain_contrastive
python -m mtmm_jax.train --config semi_pretrained --workdir runs/semi_pretrained

semi_pseudo from the run above, whose encoders learn slowly as in finetune, 300 steps. Baselines:
finetune; semi_pseudo; the same labels alone, few_labels with --config.tasks.retrieval=None.
"""

from ml_collections import ConfigDict

from mtmm_jax import training


def get_config() -> ConfigDict:
    config, tuned = training.load("semi_pseudo"), training.load("finetune")
    with config.unlocked():
        config.optimizer.rates = tuned.optimizer.rates
    config.init_from = tuned.init_from
    return config
