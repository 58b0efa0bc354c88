"""A target of every kind, random labels of it, and a source that has both."""

import jax
import numpy as np

from mtmm_jax.batch import Modality, Spec
from mtmm_jax.data import Source
from mtmm_jax.targets import Target

HOSTILE = ("<b>bold", "a 'quote' & \"more\"", "</dd><script>x()</script>")


def target(kind, **changes):
    about = {"classes": HOSTILE, "length": 4, "rate": 100.0, "shape": (3, 2), "mean": 2, "std": 3}
    return Target(kind, **{**about, **changes})


def labels(about, count, seed=0):
    """`count` labels of the right shapes: integers are classes, bools and floats anything."""
    rng = np.random.default_rng(seed)

    def draw(leaf):
        if leaf.dtype == bool:
            return rng.random(leaf.shape) < 0.6
        if np.issubdtype(leaf.dtype, np.floating):
            return rng.normal(size=leaf.shape).astype(leaf.dtype)
        return rng.integers(0, len(about.classes), leaf.shape).astype(leaf.dtype)

    return jax.tree.map(draw, about.blank(count))


def filler(leaf):
    """What no statistic may see: NaN, or an index that is no class."""
    floating = np.issubdtype(leaf.dtype, np.floating)
    return np.full_like(leaf, np.nan if floating else True if leaf.dtype == bool else 99)


def where(keep, y, other):
    def pick(a, b):
        return np.where(keep.reshape(-1, *[1] * (a.ndim - 1)), a, b)

    return jax.tree.map(pick, y, other)


def source(kind, size=60, **changes):
    """Rows with a table, a class "group", and a label "y" of that kind on two rows of three, the
    others filled with what no one may read."""
    about = target(kind, **changes)
    group = Target("class", classes=("p", "q", "r"))
    every = labels(about, size)

    def compose(rows, chance):
        present = rows % 3 != 1
        y = jax.tree.map(lambda leaf: leaf[rows], every)
        y = where(present, y, jax.tree.map(filler, y))
        here = np.ones(len(rows), bool)
        x = np.stack([rows, rows % 7], -1).astype(np.float32)
        return {
            "inputs": {"table": {"x": x, "present": here}},
            "targets": {
                "y": {"y": y, "present": present},
                "group": {"y": (rows // 2 % 3).astype(np.int32), "present": here},
            },
            "id": rows.astype(np.int32),
        }

    table = Modality("table", (2,), "float32", names=("a", "b"))
    return Source(
        name="made",
        spec=Spec({"table": table}, {"y": about, "group": group}),
        rows={"train": np.arange(size // 2), "validation": np.arange(size // 2, size)},
        compose=compose,
        draws=0,
        assets={},
        describe=lambda id: f"row {id}",
    ), every
