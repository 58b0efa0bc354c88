"""Domain adaptation by another modality: what the names say, the pictures of both styles agree to.

python -m mtmm_jax.train --config domain_names --workdir runs/domain_names

L = L_category(image, Noto) + L_category(text, Noto) + alpha (KL(p || q) + KL(q || p)) / 2 over the
rows of both, p predicted from the picture and q from the name. Names have no style: what is learned
of them with Noto's labels holds for Twemoji's drawings, which have no category in training. (They
are the names of the same concepts, so that this is much easier than without.) The metric to compare
is that of `category`, which reads the picture alone. Baseline: domain_source_only.
"""

from ml_collections import ConfigDict

from mtmm_jax import training


def get_config() -> ConfigDict:
    config = training.load("domain_source_only")
    config.data.trained, config.batch_size = ["noto", "twemoji"], 128
    config.model.encoders.text = training.load("emoji").model.encoders.text
    config.tasks.by_name = {"kind": "classification", "target": "category", "reads": "text"}
    config.model.regularisers = [
        {"kind": "agreement", "between": ["category", "by_name"], "on": "outputs"},
    ]
    config.checkpoint.best = "category"
    return config
