"""A model and a batch for any task of the table, found by trying what its constructor takes."""

from __future__ import annotations

import functools
import inspect

import jax
import numpy as np

from mtmm_jax import heads, model, tasks
from mtmm_jax.batch import Modality, Spec, Target
from mtmm_jax.registry import ConfigError
from mtmm_jax.targets import TARGETS

ROWS = 8
SPEC = Spec(
    modalities={
        "text": Modality("text", (6,), "int32", vocabulary=20),
        "image": Modality("image", (16, 16, 3), "float32"),
        "table": Modality("table", (5,), "float32", names=tuple("vwxyz")),
    },
    targets={
        "class": Target("class", ("a", "b", "c"), frequencies=(0.5, 0.3, 0.2)),
        "number": Target("number", mean=10.0, std=2.0),
        "labels": Target("labels", ("u", "v", "w"), frequencies=(0.5, 0.1, 0.3)),
        "tokens": Target("tokens", ("", "a", "b", " "), length=3),
        "boxes": Target("boxes", ("x", "y"), frequencies=(0.6, 0.4), length=3),
        "wave": Target("wave", length=1600, rate=4000.0),
        "mask": Target("mask", ("sky", "sea", "sand"), (0.5, 0.3, 0.2), shape=(8, 8)),
        "path": Target("path", mean=3.0, std=2.0, shape=(4, 2)),
    },
)
# Of a kind that is not listed, whatever shape it takes.
SPEC.targets.update(
    {kind: Target(kind, shape=(4,)) for kind in TARGETS if kind not in SPEC.targets}
)
MODEL = {
    "width": 8,
    "encoders": {
        "text": {"kind": "text_gru", "preset": "tiny"},
        "image": {"kind": "resnet", "preset": "tiny", "stem_kind": "half"},
        "table": "table_mlp",
    },
    "fusion": "concat",
}
READS = ("text", "image", "fused", ("image", "text"))


def default_head(kind):
    """The head that a task of the table has where its config names none."""
    parameter = inspect.signature(tasks.TASKS[kind]).parameters.get("head")
    return None if parameter is None else parameter.default


def other_heads():
    """Heads that are no task's default."""
    return sorted(set(heads.HEADS) - {default_head(kind) for kind in tasks.TASKS})


@functools.cache
def build(kind, head=None):
    """`(model, name)`: the first task of a kind, or of a head, that can be built.

    A task's name is that of its label or its modality by default, so names are tried.
    """
    refused: list[str] = []
    for each in tasks.TASKS if kind is None else (kind,):
        try:
            if found := _first(each, head, refused):
                return found
        except (TypeError, AttributeError):
            if kind is not None:
                raise
            # A head that this kind does not refuse, and that does not suit it.
    raise AssertionError(f"{kind or head}: nothing here suits it: {sorted(set(refused))}")


def _first(kind, head, refused):
    for name in (*SPEC.targets, *SPEC.modalities):
        for reads in READS:
            config = {"kind": kind, "reads": reads, **({"head": head} if head else {})}
            try:
                found = model.build(MODEL, {name: config}, SPEC)
                jax.eval_shape(functools.partial(loss_of, found, name), found.shapes, batch())
            except ConfigError as error:
                refused.append(str(error))
                continue
            return found, name
    return None


def loss_of(built, name, values, batch):
    """`(sum, count)` of a task's loss."""
    task = built.tasks[name]
    predictions, _ = built(values, batch["inputs"])
    return task.loss(predictions[name], task.labels(batch, built.present(batch)), None)


def variables(built, seed=0):
    """Drawn from shapes, so that no `init` is compiled."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        noise = rng.normal(0, 0.3, leaf.shape)
        scale = path[-1].key in ("scale", "var")
        return (1 + np.abs(noise) if scale else noise).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, built.shapes)


def _content(target, rng, size):
    """Random labels of a target, of the shape of its blank."""
    y, count = target.blank(size), max(len(target.classes), 1)
    if isinstance(y, dict):
        y["valid"] = np.arange(y["valid"].shape[1]) < rng.integers(1, 4, size)[:, None]
        if "points" in y:
            y["points"] = rng.normal(target.mean, target.std, y["points"].shape).astype(np.float32)
            return y
        corner, side = rng.uniform(0, 0.5, (2, *y["boxes"].shape[:2], 2))
        y["boxes"] = np.concatenate([corner, corner + 0.1 + 0.8 * side], -1).astype(np.float32)
        y["classes"] = rng.integers(0, count, y["classes"].shape).astype(np.int32)
        return y
    if y.dtype == np.int32:
        y = rng.integers(0, count, y.shape).astype(np.int32)
        if target.length:  # 0 after the end
            y = np.where(np.arange(target.length) < rng.integers(1, 3, (size, 1)), y, 0)
            y[:, 0] = 1
        return y.astype(np.int32)
    if target.classes:
        return rng.integers(0, 2, y.shape).astype(np.float32)
    if target.length:
        return rng.uniform(-0.5, 0.5, y.shape).astype(np.float32)
    return rng.normal(target.mean, target.std, y.shape).astype(np.float32)


def batch(seed=0, size=ROWS, filler=np.nan, absent=(2, 5)):
    """Random inputs and labels; of the absent rows neither is there.

    Args:
        seed: of the content.
        size: rows.
        filler: of what is absent; NaN is an index out of range where there are none.
        absent: rows without a label and without one of the inputs.
    """
    rng = np.random.default_rng(seed)
    present = np.ones(size, bool)
    present[list(absent)] = False
    inputs = {}
    for name, modality in SPEC.modalities.items():
        shape = (size, *modality.shape)
        if modality.dtype == "int32":
            x = rng.integers(1, modality.vocabulary, shape).astype(np.int32)
        else:
            x = rng.standard_normal(shape).astype(np.float32)
        inputs[name] = {"x": x, "present": np.ones(size, bool)}
        if modality.kind == "text":
            inputs[name]["mask"] = np.ones(shape, bool)
    inputs["image"]["present"] = present  # so that tasks without a label miss something too
    inputs["text"]["present"] = present
    targets = {
        name: {"y": _content(target, rng, size), "present": present.copy()}
        for name, target in SPEC.targets.items()
    }
    for entry in (*inputs.values(), *targets.values()):
        gone = ~entry["present"]
        for leaf in jax.tree.leaves([entry.get("x"), entry.get("y")]):
            if leaf.dtype == np.float32:
                leaf[gone] = filler
            elif leaf.dtype == np.int32:
                leaf[gone] = 0 if np.isfinite(filler) else 99
    weight = np.ones(size, np.float32)
    return {"inputs": inputs, "targets": targets, "weight": weight, "id": np.arange(size)}
