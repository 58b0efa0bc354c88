"""The digits as a `Source`: up to six views, each of which may be made to be missing."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence

import numpy as np

from mtmm_jax.batch import Batch, Modality, Spec, Target
from mtmm_jax.chance import uniform
from mtmm_jax.data.pipeline.source import SPLITS, Source
from mtmm_jax.data.sources import packed
from mtmm_jax.data.sources.digits.asset import DIGITS, VIEWS
from mtmm_jax.ranges import Decay, Natural, NonNegative
from mtmm_jax.registry import checked

_MISSING = 6  # a coordinate of chance: which views are missing depends on nothing else drawn


@functools.partial(checked, where="data.digits")
def digits(
    *,
    views: str | Sequence[str] | None = None,
    noise: NonNegative = 0.0,
    missing: Decay = 0.0,
    missing_in: str | Sequence[str] = SPLITS,
    seed: Natural = 0,
    data_dir: str | None = None,
) -> Source:
    """2,000 handwritten digits in six aligned views, each a table standardised on the train split.

    Paper: van Breukelen et al. 1998. Costs no download. Use it: for fusion of views in seconds.
    Not: to rank methods; all of them come near 1.

    Args:
        views: which of "fou" (76 Fourier coefficients of the shape), "fac" (216 profile
            correlations), "kar" (64 Karhunen-Loève coefficients), "pix" (240 means of 2 x 3
            pixels), "zer" (47 Zernike moments), "mor" (6 morphological features); all by default.
        noise: training examples get, half of them in each view, Gaussian noise of up to this
            deviation, in deviations of the columns.
        missing: the chance of each view of an example to be missing, decided by the example's id
            and `seed` for good. One view always stays: of those that fell, the luckiest.
        missing_in: the splits in which views are missing.
        seed: of shuffling, noise and which views are missing.
        data_dir: where the prepared data are kept; `$MTMM_JAX_DATA` or `~/.cache/mtmm_jax`.
    """
    where = "data.digits"
    chosen = packed.checked(VIEWS if views is None else views, VIEWS, f"{where}.views", "view")
    missing_in = packed.checked(missing_in, SPLITS, f"{where}.missing_in", "split")
    examples = packed.load("digits", data_dir)
    train = examples.split == "train"
    y = np.array([row["digit"] for row in examples.rows], np.int32)
    raw = {name: np.stack([row[name] for row in examples.rows]) for name in chosen}
    scales = {name: packed.scale(values.astype(np.float64), train) for name, values in raw.items()}
    tables = {
        name: ((values - scales[name][0]) / scales[name][1]).astype(np.float32)
        for name, values in raw.items()
    }
    hidden = np.isin(examples.split, missing_in)
    return Source(
        name="digits",
        spec=Spec(
            modalities={
                name: Modality("table", (VIEWS[name],), "float32", names=_names(name))
                for name in chosen
            },
            targets={
                "digit": Target(
                    "class",
                    classes=DIGITS,
                    frequencies=packed.frequencies(y[train], len(DIGITS)),
                )
            },
        ),
        rows=packed.rows_by_split(examples.split),
        compose=functools.partial(
            _compose, tables, _present(chosen, missing, hidden, seed), y, noise
        ),
        draws=2 * len(chosen) if noise else 0,
        assets={
            "tables.json": json.dumps(
                {
                    name: {"mean": mean.tolist(), "std": std.tolist()}
                    for name, (mean, std) in scales.items()
                }
            ).encode()
        },
        describe=lambda id: f"digit {DIGITS[y[id]]}, number {id}",
        augment=noise > 0,
        seed=seed,
    )


def _names(view: str) -> tuple[str, ...]:
    return tuple(f"{view}_{i}" for i in range(VIEWS[view]))


def _present(
    chosen: Sequence[str], missing: float, hidden: np.ndarray, seed: int
) -> dict[str, np.ndarray]:
    """View -> `[N]` bool. A view's luck is its own, whichever others are chosen."""
    ids = np.arange(len(hidden))
    luck = np.stack(
        [uniform(1, _MISSING, seed, list(VIEWS).index(name), ids)[:, 0] for name in chosen], 1
    )
    stays = (luck >= missing) | (luck == luck.max(1, keepdims=True)) | ~hidden[:, None]
    return dict(zip(chosen, stays.T, strict=True))


def _compose(
    tables: Mapping[str, np.ndarray],
    present: Mapping[str, np.ndarray],
    y: np.ndarray,
    noise: float,
    rows: np.ndarray,
    chance: np.ndarray | None,
) -> Batch:
    """Row r is digit r."""
    inputs = {}
    for i, (name, table) in enumerate(tables.items()):
        x = table[rows]
        if chance is not None:
            x = packed.noisy(x, noise, chance[:, 2 * i : 2 * i + 2])
        inputs[name] = {"x": x, "present": present[name][rows]}
    return {
        "inputs": inputs,
        "targets": {"digit": {"y": y[rows], "present": np.ones(len(rows), bool)}},
        "id": rows.astype(np.int32),
    }
