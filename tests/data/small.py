"""Two little sources: `left` has image, text, kind; `right` has text, audio, size and kind."""

import numpy as np

from mtmm_jax.batch import Spec
from mtmm_jax.chance import uniform
from mtmm_jax.data import Source
from tests import toy

PARTS = {"left": (("image", "text"), ("kind",)), "right": (("text", "audio"), ("size", "kind"))}


def source(name: str, size: int = 20, **changes) -> Source:
    """Rows are their own ids; augmentation adds its chance to the floats."""
    modalities, targets = PARTS[name]
    spec = Spec(
        {m: toy.SPEC.modalities[m] for m in modalities}, {t: toy.SPEC.targets[t] for t in targets}
    )
    salt = sorted(PARTS).index(name)

    def compose(rows, chance):
        inputs = {}
        for key, modality in spec.modalities.items():
            shape = modality.shape
            drawn = uniform(int(np.prod(shape)), salt, rows).reshape(len(rows), *shape)
            if modality.kind == "text":
                x = (drawn * 19).astype(np.int32)
                inputs[key] = {"x": x, "mask": np.arange(shape[0]) < 2 + rows[:, None] % 5}
            else:
                shift = 0 if chance is None else chance[:, :1].reshape(-1, *[1] * len(shape))
                inputs[key] = {"x": (drawn + shift).astype(np.float32)}
            inputs[key]["present"] = rows % 7 != 3
        labels = {"kind": (rows % 3).astype(np.int32), "size": rows.astype(np.float32)}
        return {
            "inputs": inputs,
            "targets": {t: {"y": labels[t], "present": rows % 5 != 1} for t in spec.targets},
            "id": rows.astype(np.int32),
        }

    ends = (size, size + 6, size + 10)
    return Source(
        name=name,
        spec=spec,
        rows={
            split: np.arange(start, stop)
            for split, start, stop in zip(
                ("train", "validation", "test"), (0, *ends), ends, strict=False
            )
        },
        compose=compose,
        draws=2,
        assets={},
        describe=lambda id: f"{name} {id}",
        **changes,
    )
