r"""Domain adaptation, from Noto to Twemoji: what the source alone teaches.

python -m mtmm_jax.train --config domain_source_only --workdir runs/domain_source_only
python -m mtmm_jax.evaluate --workdir runs/domain_source_only --config.data.held=noto

Each emoji is drawn twice: Noto's drawings are labelled, Twemoji's have no category in training. A
picture's category, by an image encoder alone; here no step sees a Twemoji. The other domain_*
configs are this one with another line or two. Validation and test are Twemoji's (`held`), drawings
of concepts that training never shows; the second command scores Noto's. Baselines: this config for
all that adapt, and domain_target_only, which has Twemoji's labels. 400 steps of 64 drawings; those
that adapt see 64 of either style.
"""

from ml_collections import ConfigDict

from mtmm_jax import training

SOURCE, TARGET = "noto", "twemoji"


def get_config() -> ConfigDict:
    config = training.load("emoji")
    config.steps = 400
    # The label `style` has one class in each, another one: two labels of different names.
    drawn = {
        style: {"kind": "emoji", "styles": [style], "rename": {"style": f"{style}_style"}}
        for style in (SOURCE, TARGET)
    }
    drawn[TARGET]["hide"] = {"category": 0.0}
    config.data = {
        "kind": "mixture",
        "origin": True,
        "trained": [SOURCE],
        "held": [TARGET],
        "mixing": {"kind": "accumulate"},
        "sources": drawn,
    }
    del config.model.encoders.text, config.model.encoders.audio
    config.model.modality_dropout = 0.0
    config.tasks = {"category": {"kind": "classification", "reads": "image"}}
    config.checkpoint.every = config.evaluation.every = 100
    return config
