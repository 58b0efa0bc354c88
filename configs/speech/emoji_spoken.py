"""Emoji with a fifth task: besides the name written, the name spoken finds its picture.

python -m mtmm_jax.train --config emoji_spoken --workdir runs/emoji_spoken

Baselines, at equal compute: each task alone for a fifth of the steps; and each modality alone, as
in emoji.

Measured (test, 3 seeds, 4 minutes each with one of two cores): category accuracy .861 ± .006,
retrieval image_to_text_recall@10 .471 ± .014, retrieval, text_to_image_recall@10 .446 ± .009,
spoken image_to_audio_recall@10 .175 ± .008, spoken, audio_to_image_recall@10 .186 ± .014,
subcategory accuracy .747 ± .002, year r2 .263 ± .022; trivial: category accuracy .189, retrieval
image_to_text_recall@10 .051, retrieval, text_to_image_recall@10 .051, spoken
image_to_audio_recall@10 .051, spoken, audio_to_image_recall@10 .051, subcategory accuracy .148,
year r2 -.012; category alone: category accuracy .827 ± .011; subcategory alone: subcategory
accuracy .659 ± .034; year alone: year r2 .272 ± .019†; retrieval alone: retrieval
image_to_text_recall@10 .246 ± .018, retrieval, text_to_image_recall@10 .192 ± .010; spoken alone:
spoken image_to_audio_recall@10 .089 ± .004, spoken, audio_to_image_recall@10 .073 ± .006; image
alone: category accuracy .645 ± .006, subcategory accuracy .417 ± .005, year r2 .142 ± .004; text
alone: category accuracy .830 ± .009, subcategory accuracy .694 ± .007, year r2 .190 ± .022; audio
alone: category accuracy .514 ± .009, subcategory accuracy .324 ± .008, year r2 .073 ± .015.
"""

from ml_collections import ConfigDict

from mtmm_jax import training


def get_config() -> ConfigDict:
    config = training.load("emoji")
    config.tasks.spoken = ConfigDict({"kind": "retrieval", "reads": ["image", "audio"]})
    return config
