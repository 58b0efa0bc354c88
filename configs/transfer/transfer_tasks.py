r"""Transfer between tasks: from one score of films to another with few labels, one theta.

python -m mtmm_jax.train --config transfer_tasks --workdir runs/transfer_tasks

L = sum over source L_s + lambda sum over target L_t: the Tomatometer of all films that have one,
and the Metacritic score of a tenth of those. Text, table and trunk are shared, each score has its
head. lambda is the weight of the second loss, --config.balancing.weights=[0.1,1]; half of a batch
has the one label, half the other. Baselines and the sequential way are those of transfer_domains.
300 steps.

Measured (test, 3 seeds, 13 s each with one of two cores): metacritic r2 .188 ± .013, tomatometer r2
.191 ± .002. Trivial predictions and baselines: configs/README.md.
"""

from ml_collections import ConfigDict

from mtmm_jax import training

LAMBDA = 1.0
SOURCE, TARGET, LABELLED = "tomatometer", "metacritic", 0.1


def get_config() -> ConfigDict:
    config = training.load("films")
    config.steps = 300
    config.data = training.load("transfer_domains").data
    labels = {"source": {TARGET: 0.0}, "target": {SOURCE: 0.0, TARGET: LABELLED}}
    with config.unlocked():
        config.data.sources = {
            part: {"kind": "films", "hide": hide, "semi": {"target": name, "labelled": 1.0}}
            for (part, hide), name in zip(labels.items(), (SOURCE, TARGET), strict=True)
        }
    config.tasks = {name: {"kind": "regression"} for name in (SOURCE, TARGET)}
    config.balancing = {"kind": "static", "weights": [LAMBDA, 1.0]}  # in the order of their names
    config.checkpoint.every = config.evaluation.every = 100
    return config
