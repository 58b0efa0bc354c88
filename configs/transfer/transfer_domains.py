r"""Transfer between domains: L = sum over source L_s + lambda sum over target L_t, one theta.

python -m mtmm_jax.train --config transfer_domains --workdir runs/transfer_domains

The category of Noto's drawings, all known, and of Twemoji's, of which a tenth is; tested on
Twemoji's. A batch holds rows of both as 1 : lambda, all of them labelled; lambda is 1 and
--config.data.mixing.weights=[1,0.1] is another. 300 steps. Baselines: the target's labels alone,
--config.data.trained="['target']"; the source's alone (lambda 0), "['source']"; and first the one,
then the other, with --config.init_from.workdir= naming the run before.

Measured (test, 3 seeds, 35 s each with one of two cores): category accuracy .553 ± .019. Trivial
predictions and baselines: configs/README.md.
"""

from ml_collections import ConfigDict

from mtmm_jax import training

LAMBDA = 1.0
SOURCE, TARGET, LABELLED = "noto", "twemoji", 0.1


def get_config() -> ConfigDict:
    config = training.load("emoji")
    config.steps = 300
    drawn = training.load("domain_source_only").data.sources
    seen = {style: {**drawn[style], "keep": ["image"]} for style in (SOURCE, TARGET)}
    few = {"hide": {"category": LABELLED}, "semi": {"target": "category", "labelled": 1.0}}
    config.data = {
        "kind": "mixture",
        "sources": {"source": seen[SOURCE], "target": {**seen[TARGET], **few}},
        "trained": ["source", "target"],
        "held": ["target"],
        "mixing": {"kind": "fixed", "weights": [1.0, LAMBDA]},
    }
    del config.model.encoders.text, config.model.encoders.audio
    config.model.modality_dropout = 0.0
    config.tasks = {"category": {"kind": "classification"}}
    config.checkpoint.every = config.evaluation.every = 100
    return config
