r"""Few labels: a tenth of the emoji have a category; pairs of picture and name have no label.

python -m mtmm_jax.train --config configs/few_labels.py --workdir runs/few_labels

Category from 10% of the labels, beside retrieval, which needs none, 300 steps. Another share is
--config.data.hide.category=0.02. Baseline: the category alone from the same labels,
--config.tasks.retrieval=None. What both reach over the share, 3 seeds, and a picture of it:

python -m mtmm_jax.benchmarks.recipes --seeds 0,1,2 --json recipes.json --plot few_labels.png \
    --only few_labels_2,few_labels_5,few_labels,few_labels_25,few_labels_100

Measured (test, 3 seeds, 80 s each with one of two cores): few labels, 2%: category accuracy .439 ±
.026, retrieval image_to_text_recall@10 .242 ± .025, retrieval, text_to_image_recall@10 .202 ± .010;
trivial: category accuracy .189, retrieval image_to_text_recall@10 .051, retrieval,
text_to_image_recall@10 .051; category alone: category accuracy .425 ± .018. few labels, 5%:
category accuracy .486 ± .019, retrieval image_to_text_recall@10 .216 ± .002, retrieval,
text_to_image_recall@10 .194 ± .004; trivial: category accuracy .189, retrieval
image_to_text_recall@10 .051, retrieval, text_to_image_recall@10 .051; category alone: category
accuracy .462 ± .031. few labels, 10%: category accuracy .535 ± .027, retrieval
image_to_text_recall@10 .256 ± .017, retrieval, text_to_image_recall@10 .221 ± .015; trivial:
category accuracy .189, retrieval image_to_text_recall@10 .051, retrieval, text_to_image_recall@10
.051; category alone: category accuracy .531 ± .002. few labels, 25%: category accuracy .669 ± .013,
retrieval image_to_text_recall@10 .290 ± .001, retrieval, text_to_image_recall@10 .253 ± .005;
trivial: category accuracy .189, retrieval image_to_text_recall@10 .051, retrieval,
text_to_image_recall@10 .051; category alone: category accuracy .658 ± .012. few labels, 100%:
category accuracy .844 ± .016, retrieval image_to_text_recall@10 .318 ± .001, retrieval,
text_to_image_recall@10 .289 ± .013; trivial: category accuracy .189, retrieval
image_to_text_recall@10 .051, retrieval, text_to_image_recall@10 .051; category alone: category
accuracy .853 ± .015†.
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
