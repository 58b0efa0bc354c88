r"""Few labels: a tenth of the emoji have a category; pairs of picture and name have no label.

python -m mtmm_jax.train --config few_labels --workdir runs/few_labels

Category from 10% of the labels, next to retrieval, which needs none, 300 steps. Another share is
--config.data.hide.category=0.02. Baseline: the category alone from the same labels,
--config.tasks.retrieval=None. What both reach over the share, 3 seeds, and a picture of it:

python -m mtmm_jax.benchmarks.recipes --seeds 0,1,2 --json recipes.json --plot few_labels.png \
    --only few_labels_2,few_labels_5,few_labels,few_labels_25,few_labels_100

Measured (test, 3 seeds, 77 s each with one of two cores): few labels, 2%: category accuracy .444 ±
.024, retrieval image_to_text_recall@10 .241 ± .026, retrieval, text_to_image_recall@10 .196 ± .010;
trivial: category accuracy .189, retrieval image_to_text_recall@10 .051, retrieval,
text_to_image_recall@10 .051; category alone: category accuracy .425 ± .018. few labels, 5%:
category accuracy .487 ± .017, retrieval image_to_text_recall@10 .217 ± .002, retrieval,
text_to_image_recall@10 .192 ± .002; trivial: category accuracy .189, retrieval
image_to_text_recall@10 .051, retrieval, text_to_image_recall@10 .051; category alone: category
accuracy .458 ± .030. few labels, 10%: category accuracy .536 ± .027, retrieval
image_to_text_recall@10 .260 ± .012, retrieval, text_to_image_recall@10 .228 ± .017; trivial:
category accuracy .189, retrieval image_to_text_recall@10 .051, retrieval, text_to_image_recall@10
.051; category alone: category accuracy .530 ± .005. few labels, 25%: category accuracy .670 ± .013,
retrieval image_to_text_recall@10 .290 ± .001, retrieval, text_to_image_recall@10 .248 ± .010;
trivial: category accuracy .189, retrieval image_to_text_recall@10 .051, retrieval,
text_to_image_recall@10 .051; category alone: category accuracy .656 ± .016. few labels, 100%:
category accuracy .847 ± .018, retrieval image_to_text_recall@10 .319 ± .000, retrieval,
text_to_image_recall@10 .282 ± .010; trivial: category accuracy .189, retrieval
image_to_text_recall@10 .051, retrieval, text_to_image_recall@10 .051; category alone: category
accuracy .854 ± .015†.
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
