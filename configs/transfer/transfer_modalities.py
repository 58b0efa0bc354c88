r"""Transfer between modalities: from pictures to speech of the same concepts, one theta.

python -m mtmm_jax.train --config transfer_modalities --workdir runs/transfer_modalities

L = sum over source L_s + lambda sum over target L_t: the category of an emoji from its picture, all
known, and from its spoken name, of which a tenth is; no row has both, and speech is tested. Each
modality has its encoder; fusion, trunk and head are those of both. lambda, baselines and the
sequential way are those of transfer_domains. 400 steps.

Measured (test, 3 seeds, 60 s each with one of two cores): category accuracy .401 ± .006. Trivial
predictions and baselines: configs/README.md.
"""

from ml_collections import ConfigDict

from mtmm_jax import training

SOURCE, TARGET = "image", "audio"


def get_config() -> ConfigDict:
    config = training.load("transfer_domains")
    config.steps = 400
    few = {key: config.data.sources.target[key] for key in ("hide", "semi")}
    with config.unlocked():
        config.data.sources = {
            "source": {"kind": "emoji", "keep": [SOURCE]},
            "target": {"kind": "emoji", "keep": [TARGET], **few},
        }
        config.model.encoders[TARGET] = training.load("emoji").model.encoders[TARGET]
    config.model.fusion = {"kind": "mean"}
    return config
