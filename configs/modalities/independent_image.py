r"""Independent training: a model that knows pictures only.

python -m mtmm_jax.train --config independent_image --workdir runs/independent_image
python -m mtmm_jax.predict --text 'red apple' \
    --workdirs runs/independent_image,runs/independent_text,runs/independent_audio
python -m mtmm_jax.sweep --rule learned --workdir runs/independent \
    --ensemble runs/independent_image,runs/independent_text,runs/independent_audio

fusion_late with an image encoder only; independent_text and independent_audio are its siblings.
Their predictions are fused afterwards: asked together (the second command), by a rule that is fixed
(mean, product, max) or learned on the validation split (the third). Baseline: fusion_late, all
three trained as one.

Measured (test, 3 seeds, 25 s each with one of two cores): independent training, fused by mean:
category accuracy .866 ± .008, subcategory accuracy .660 ± .017; trivial: category accuracy .189,
subcategory accuracy .148; late fusion: category accuracy .850 ± .007, subcategory accuracy .646 ±
.008; independent_image: category accuracy .575 ± .009, subcategory accuracy .325 ± .019;
independent_text: category accuracy .835 ± .010, subcategory accuracy .682 ± .013†;
independent_audio: category accuracy .393 ± .008, subcategory accuracy .230 ± .012. independent
training, fused by weighted: category accuracy .857 ± .004, subcategory accuracy .688 ± .014;
trivial: category accuracy .189, subcategory accuracy .148; late fusion: category accuracy .850 ±
.007, subcategory accuracy .646 ± .008; independent_image: category accuracy .575 ± .009,
subcategory accuracy .325 ± .019; independent_text: category accuracy .835 ± .010, subcategory
accuracy .682 ± .013; independent_audio: category accuracy .393 ± .008, subcategory accuracy .230 ±
.012. independent training, fused by learned: category accuracy .845 ± .008, subcategory accuracy
.352 ± .010; trivial: category accuracy .189, subcategory accuracy .148; late fusion: category
accuracy .850 ± .007†, subcategory accuracy .646 ± .008†; independent_image: category accuracy .575
± .009, subcategory accuracy .325 ± .019; independent_text: category accuracy .835 ± .010,
subcategory accuracy .682 ± .013†; independent_audio: category accuracy .393 ± .008, subcategory
accuracy .230 ± .012.
"""

from ml_collections import ConfigDict

from mtmm_jax import training


def get_config() -> ConfigDict:
    config = training.load("fusion_late")
    del config.model.encoders.text, config.model.encoders.audio
    config.model.modality_dropout = 0.0
    return config
