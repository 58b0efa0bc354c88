"""The workdir of a run that seems finished: a text, a table, a series and a picture, five tasks.

Its parameters are drawn, not trained, so that nothing compiles.
"""

import hashlib
import json

import jax
import numpy as np

from mtmm_jax import training
from mtmm_jax.batch import Modality, Spec, Target
from mtmm_jax.store.checkpoints import Checkpoints
from mtmm_jax.store.files import sealed
from mtmm_jax.store.workdir import Workdir, stamped
from mtmm_jax.text import read_tokenizer, train_tokenizer
from tests.training import small_run

TOKENIZER = train_tokenizer(["red apple", "green apple", "red pear", "a blue car"], 60)
COLUMNS = {"age": {"mean": 40.0, "std": 10.0}, "colour": {"categories": ["blue", "red"]}}
SERIES = {"mean": [1.0, 2.0], "std": [2.0, 4.0]}
SPEC = Spec(
    modalities={
        "text": Modality(
            "text", (6,), "int32", vocabulary=read_tokenizer(TOKENIZER).get_vocab_size()
        ),
        "table": Modality("table", (3,), "float32", names=("age", "colour=blue", "colour=red")),
        "series": Modality("series", (5, 2), "float32", rate=10.0, names=("x", "y")),
        "image": Modality("image", (16, 16, 3), "float32"),
    },
    targets={
        "kind": Target("class", classes=("a", "b", "c"), frequencies=(0.5, 0.3, 0.2)),
        "size": Target("number", mean=10.0, std=2.0),
        "tags": Target("labels", classes=("u", "v"), frequencies=(0.5, 0.1)),
    },
)
ENCODERS = {
    "text": "text_bag",
    "table": "table_mlp",
    "series": "series_gru",
    "image": {"kind": "vit", "preset": "tiny"},
}
TASKS = {
    "kind": {"kind": "classification"},
    "level": {"kind": "ordinal", "target": "kind"},
    "size": {"kind": "regression", "loss": "gaussian"},
    "tags": {"kind": "multilabel", "reads": "text"},
    "pairs": {
        "kind": "retrieval",
        "reads": ["text", "series"],
        "head": {"kind": "embedding", "size": 4},
    },
}


def rewrite(workdir, spec, assets=None):
    """Gives a workdir another spec, and other assets if any, as a run with these would have."""
    for name, content in (assets or {}).items():
        (workdir.path / "assets" / name).write_bytes(content)
    assets = assets or workdir.assets()
    parts = {f"assets/{name}": content for name, content in assets.items()}
    parts["spec.json"] = sealed(spec)
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in parts.items()}
    config = stamped(workdir.config(), digests)
    (workdir.path / "spec.json").write_bytes(parts["spec.json"])
    workdir.write("config.json", config)


def kept(path):
    """Such a workdir."""
    config = {**small_run.get_config().to_dict(), "devices": 1, "tasks": TASKS}
    config["model"]["encoders"] = ENCODERS
    experiment = training.assemble(config, SPEC)
    workdir = Workdir(path)
    assets = {
        "tokenizer.json": TOKENIZER.encode(),
        "table_columns.json": json.dumps(COLUMNS).encode(),
        "series.json": json.dumps(SERIES).encode(),
    }
    workdir.claim(experiment.config, SPEC, assets)
    rng = np.random.default_rng(0)

    def draw(leaf):
        if leaf.dtype != np.float32:
            return np.zeros(leaf.shape, leaf.dtype)
        return rng.normal(0, 0.3, leaf.shape).astype(np.float32)

    checkpoints = Checkpoints(workdir.checkpoints)
    checkpoints.save(jax.tree.map(draw, experiment.shapes), 0.5, {"step": 0})
    checkpoints.close()
    return workdir
