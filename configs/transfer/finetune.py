r"""Fine-tuning: a pretrained model learns the category from a tenth of the labels.

python -m mtmm_jax.train --config pretrain_contrastive \
    --workdir runs/pretrain_contrastive
python -m mtmm_jax.train --config finetune --workdir runs/finetune

few_labels without its retrieval, 300 steps, its encoders (and fusion, where there was one) from the
run above; encoders learn at a fiftieth of the rate, as few labels would undo what they know.
Baseline: from scratch, few_labels with --config.tasks.retrieval=None.
"""

from ml_collections import ConfigDict

from mtmm_jax import training


def get_config() -> ConfigDict:
    config = training.load("few_labels")
    del config.tasks.retrieval
    with config.unlocked():
        config.optimizer.rates = [["encoders/.*", 0.02]]
    config.init_from = {"workdir": "runs/pretrain_contrastive"}
    return config
