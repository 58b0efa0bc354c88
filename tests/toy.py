"""A small world for tests: six modalities, three kinds of label, random batches with holes."""

from pathlib import Path

import jax
import numpy as np

from mtmm_jax import balancing, model
from mtmm_jax.assembly import Parts
from mtmm_jax.batch import Modality, Spec, Target
from mtmm_jax.training.extensions import build_balancer

GOLDEN = Path(__file__).parent / "encoders" / "golden"  # see make_bert.py there
NEEDED = {"pretrained": {"weights": str(GOLDEN / "bert")}}  # what encoders cannot do without

SPEC = Spec(
    modalities={
        "image": Modality("image", (16, 16, 3), "float32"),
        "text": Modality("text", (6,), "int32", vocabulary=20),
        "audio": Modality("audio", (1600,), "float32", rate=4000.0),
        "table": Modality("table", (5,), "float32", names=tuple("vwxyz")),
        "series": Modality("series", (12, 3), "float32", rate=10.0),
        "video": Modality("video", (3, 16, 16, 3), "float32", rate=2.0),
    },
    targets={
        "kind": Target("class", classes=("a", "b", "c"), frequencies=(0.5, 0.3, 0.2)),
        "size": Target("number", mean=10.0, std=2.0),
        "spelling": Target("class", classes=("x", "y"), made_from=("text",)),
    },
)

MODEL = {
    "width": 16,
    "encoders": {
        "image": {"kind": "resnet", "preset": "tiny", "stem_kind": "half"},
        "text": {"kind": "text_gru", "preset": "tiny"},
        "audio": {"kind": "log_mel_cnn", "preset": "tiny", "mels": 16},
    },
    "fusion": "concat",
}

TASKS = {
    "kind": {"kind": "classification"},
    "size": {"kind": "regression"},
    "pairs": {
        "kind": "retrieval",
        "reads": ["image", "text"],
        "head": {"kind": "embedding", "size": 8},
    },
}


def build(tasks=None, **changes):
    """The toy model, with some of its config changed."""
    return model.build({**MODEL, **changes}, tasks or TASKS, SPEC)


def batch(size=8, seed=0, holes=True):
    """A random batch; with holes, every modality and label is missing somewhere, as NaN."""
    rng = np.random.default_rng(seed)

    def present():
        here = rng.random(size) < 0.7
        return here if holes else np.ones(size, bool)

    lengths = rng.integers(2, 7, size)
    inputs = {
        "image": {"x": rng.standard_normal((size, 16, 16, 3)).astype(np.float32)},
        "text": {
            "x": rng.integers(0, 20, (size, 6)).astype(np.int32),
            "mask": np.arange(6) < lengths[:, None],
        },
        "audio": {"x": rng.standard_normal((size, 1600)).astype(np.float32)},
    }
    targets = {
        "kind": {"y": rng.integers(0, 3, size).astype(np.int32)},
        "size": {"y": rng.normal(10, 2, size).astype(np.float32)},
        "spelling": {"y": rng.integers(0, 2, size).astype(np.int32)},
    }
    for entry in (*inputs.values(), *targets.values()):
        entry["present"] = present()
        values = entry.get("x", entry.get("y"))
        if values.dtype == np.float32:
            values[~entry["present"]] = np.nan
    more = {
        "table": {"x": rng.standard_normal((size, 5)), "mask": rng.random((size, 5)) < 0.8},
        "series": {
            "x": rng.standard_normal((size, 12, 3)),
            "mask": np.arange(12) < rng.integers(5, 13, size)[:, None],
        },
        "video": {
            "x": rng.standard_normal((size, 3, 16, 16, 3)),
            "mask": np.arange(3) < rng.integers(1, 4, size)[:, None],
        },
    }
    for name, entry in more.items():
        there = present()
        mask = entry["mask"] | (np.arange(entry["mask"].shape[1]) == 0)
        x = entry["x"].astype(np.float32)
        x[~there] = np.nan
        inputs[name] = {"x": x, "mask": mask, "present": there}
    return {
        "inputs": inputs,
        "targets": targets,
        "weight": np.ones(size, np.float32),
        "id": rng.permutation(size).astype(np.int32),
    }


def variables(module, *args, seed=0):
    """Random variables of a module's shapes, biases included, without compiling its `init`."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name = path[-1].key
        noise = rng.standard_normal(leaf.shape).astype(np.float32)
        if name == "letters":  # code points, the first of some tokens a space
            points = np.round(97 + 9 * np.abs(noise))
            points[::2, 0] = 32
            return points
        if name in ("scale", "var"):
            return 1 + 0.1 * np.abs(noise)
        fan_in = np.prod(leaf.shape[:-1]) if name in ("kernel", "recurrent") else 10.0
        return noise / np.sqrt(fan_in).astype(np.float32)

    shapes = jax.eval_shape(module.init, jax.random.key(0), *args)
    return jax.tree_util.tree_map_with_path(draw, shapes)


def balancer_of(config, built, make=balancing.build):
    """`(balancer, options of the trainer)` as `assemble` builds them."""
    parts = Parts({}, None, built, 1, None, config, make_balancer=make)
    parts = build_balancer(None, parts)
    return parts.balancer, dict(parts.trainer)
