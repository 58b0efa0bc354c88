r"""Few labels: a tenth of the emoji have a category; pairs of picture and name have no label.

python -m mtmm_jax.train --config few_labels --workdir runs/few_labels

Category from 10% of the labels, next to retrieval, which needs none, 300 steps. Another share is
--config.data.hide.category=0.02. Baseline: the category alone from the same labels,
--config.tasks.retrieval=None. What both reach over the share, 3 seeds, and a picture of it:

python -m mtmm_jax.benchmarks.recipes --seeds 0,1,2 --json recipes.json --plot few_labels.png \
    --only few_labels_2,few_labels_5,few_labels,few_labels_25,few_labels_100

Measured (test, 3 seeds, 77 s each with one of two cores): few labels, 2%: category accuracy .444 ±
.024. few labels, 5%: category accuracy .487 ± .017. few labels, 10%: category accuracy .536 ± .027.
few labels, 25%: category accuracy .670 ± .013. few labels, 100%: category accuracy .847 ± .018.
Trivial predictions and baselines: configs/README.md.
"""

from ml_collections import ConfigDict

from mtmm_jax import training


def get_config() -> ConfigDict:
    config = training.load("emoji")
    config.steps = 300
    config.data.hide = {"category": 0.1}
    del config.tasks.year, config.tasks.subcategory
    config.checkpoint.every = config.evaluation.every = 100
    config.checkpoint.best = "category"
    return config
