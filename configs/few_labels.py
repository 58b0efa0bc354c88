r"""Few labels: a tenth of the emoji have a category; pairs of picture and name have no label.

python -m mtmm_jax.train --config configs/few_labels.py --workdir runs/few_labels

Category from 10% of the labels, beside retrieval, which needs none, 300 steps. Another share is
--config.data.hide.category=0.02. Baseline: the category alone from the same labels,
--config.tasks.retrieval=None. What both reach over the share, 3 seeds, and a picture of it:

python -m mtmm_jax.benchmarks.recipes --seeds 0,1,2 --json recipes.json --plot few_labels.png \
    --only few_labels_2,few_labels_5,few_labels,few_labels_25,few_labels_100

Measured (test, one seed, 76 s each with one of two cores): few labels, 2%: category accuracy .426,
retrieval image_to_text_recall@10 .209, retrieval, text_to_image_recall@10 .209; trivial: category
accuracy .189, retrieval image_to_text_recall@10 .051, retrieval, text_to_image_recall@10 .051;
category alone: category accuracy .444†. few labels, 5%: category accuracy .464, retrieval
image_to_text_recall@10 .214, retrieval, text_to_image_recall@10 .199; trivial: category accuracy
.189, retrieval image_to_text_recall@10 .051, retrieval, text_to_image_recall@10 .051; category
alone: category accuracy .469†. few labels, 10%: category accuracy .526, retrieval
image_to_text_recall@10 .232, retrieval, text_to_image_recall@10 .219; trivial: category accuracy
.189, retrieval image_to_text_recall@10 .051, retrieval, text_to_image_recall@10 .051; category
alone: category accuracy .528†. few labels, 25%: category accuracy .671, retrieval
image_to_text_recall@10 .291, retrieval, text_to_image_recall@10 .250; trivial: category accuracy
.189, retrieval image_to_text_recall@10 .051, retrieval, text_to_image_recall@10 .051; category
alone: category accuracy .643. few labels, 100%: category accuracy .852, retrieval
image_to_text_recall@10 .316, retrieval, text_to_image_recall@10 .301; trivial: category accuracy
.189, retrieval image_to_text_recall@10 .051, retrieval, text_to_image_recall@10 .051; category
alone: category accuracy .849.
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
