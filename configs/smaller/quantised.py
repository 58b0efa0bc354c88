"""Quantisation-aware training: the model reads its weights in eight bits while it learns them.

python -m mtmm_jax.train --config quantised --workdir runs/quantised
python -m mtmm_jax.export --workdir runs/quantised --out runs/quantised/small.zip --int8

emoji, 1000 steps. Baseline: rounded after training, --config.quantise=None, which is emoji. Files,
latency and metrics next to it: `python -m mtmm_jax.benchmarks.studies.smaller`.
"""

from ml_collections import ConfigDict

from mtmm_jax import training


def get_config() -> ConfigDict:
    config = training.load("emoji")
    config.quantise = {"bits": 8, "on": [".*/(kernel|recurrent|embedding)"]}
    return config
