"""Transformer fusion: an encoder over all tokens, a decoder that asks a query for each task.

python -m mtmm_jax.train --config fusion_transformer --workdir runs/fusion_transformer

fusion_late with another line for the fusion. Baseline: fusion_late; task_queries keeps the answers
of the tasks apart.

Measured (test, 3 seeds, 117 s each with one of two cores): category accuracy .850 ± .014,
subcategory accuracy .681 ± .022. Trivial predictions and baselines: configs/README.md.
"""

from ml_collections import ConfigDict

from mtmm_jax import training


def get_config() -> ConfigDict:
    config = training.load("fusion_late")
    config.model.fusion = {"kind": "encoder_decoder", "queries": 2, "layers": 1}
    return config
