"""Kinds that no row of `MODALITIES` has: pictures of distances, and clouds with defaults only."""

import json

import numpy as np

from mtmm_jax.markup import png
from mtmm_jax.modalities import MODALITIES, ModalityKind
from mtmm_jax.modalities.image import IMAGE


def grey(x):
    """`[1, H, W, 3]` uint8."""
    return np.clip(255 * np.repeat(np.asarray(x, np.float32), 3, axis=-1), 0, 255)[None].astype(
        np.uint8
    )


DEPTH = ModalityKind(
    "depth",
    dimensions=3,
    like=("image",),
    units=IMAGE.units,
    corruptions={"blur": IMAGE.corruptions["blur"], "absent": IMAGE.corruptions["absent"]},
    show=lambda example: f"<img alt=depth src='{png(grey(example.x)[0])}'>",
    frames=grey,
)
POINTS = ModalityKind("points", dimensions=2)
MADE_UP = {"depth": DEPTH, "points": POINTS}
DATA = {
    "kind": "manifest",
    "modalities": {"depth": {"kind": "depth", "column": "scan"}, "points": "points"},
    "targets": {"shape": "class"},
    "augment": False,
}


def register(monkeypatch):
    for name, row in MADE_UP.items():
        monkeypatch.setitem(MODALITIES, name, row)


def manifest(root, rows=24):
    """A manifest whose scans are `.npy` files and whose clouds are lists or files."""
    rng = np.random.default_rng(0)
    lines = []
    for i in range(rows):
        label = i % 2
        scan = rng.random((16, 16, 1)).astype(np.float32) * 0.2 + 0.6 * label
        np.save(root / f"{i}.npy", scan)
        cloud = (rng.normal(size=(20, 3)) + label).round(3)
        np.save(root / f"{i}_cloud.npy", cloud)
        lines.append(
            {
                "id": i,
                "scan": f"{i}.npy" if i != 5 else None,
                "points": cloud.tolist() if i % 3 else f"{i}_cloud.npy",
                "shape": ["box", "ball"][label],
                "split": ("train", "train", "validation", "test")[i // 2 % 4],
            }
        )
    path = root / "m.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path
