"""The vowels as a `Source`: one series of varying length, one speaker."""

from __future__ import annotations

import functools
import json
from typing import Annotated

import numpy as np

from mtmm_jax.batch import Batch, Modality, Spec, Target
from mtmm_jax.data.pipeline.source import Source
from mtmm_jax.data.sources import packed
from mtmm_jax.data.sources.vowels.asset import CHANNELS, RATE, SPEAKERS
from mtmm_jax.ranges import Natural, NonNegative, Range
from mtmm_jax.registry import checked

Frames = Annotated[int, Range(1, 2**12)]


@functools.partial(checked, where="data.vowels")
def vowels(
    *,
    length: Frames | None = None,
    noise: NonNegative = 0.0,
    seed: Natural = 0,
    data_dir: str | None = None,
) -> Source:
    """640 utterances of the vowels /ae/ by nine men: who speaks?

    Twelve channels, standardised on the train split. The test split is the official one; a fifth of
    each speaker's training utterances is for validation.

    Paper: Kudo et al. 1999. Costs no download. Use it: for series of different lengths, with an
    official test split. Not: for more than nine classes.

    Args:
        length: steps; longer utterances are cut, shorter ones are padded with zeros that the mask
            tells apart. The longest utterance's by default, 29.
        noise: half of the training examples get Gaussian noise of up to this deviation, in
            deviations of the channels.
        seed: of shuffling and noise.
        data_dir: where the prepared data are kept; `$MTMM_JAX_DATA` or `~/.cache/mtmm_jax`.
    """
    examples = packed.load("vowels", data_dir)
    series = [row["series"] for row in examples.rows]
    train = examples.split == "train"
    heard = np.concatenate([one for one, use in zip(series, train, strict=True) if use])
    mean, std = packed.scale(heard.astype(np.float64), np.ones(len(heard), bool))
    size = length or max(map(len, series))
    mask = np.arange(size) < np.array([len(one) for one in series])[:, None]
    x = np.zeros((len(series), size, CHANNELS), np.float32)
    for into, one in zip(x, series, strict=True):
        into[: len(one)] = ((one - mean) / std)[:size]
    y = np.array([row["speaker"] for row in examples.rows], np.int32)
    names = tuple(f"cepstrum_{i + 1}" for i in range(CHANNELS))
    frequencies = packed.frequencies(y[train], len(SPEAKERS))
    return Source(
        name="vowels",
        spec=Spec(
            modalities={
                "series": Modality("series", (size, CHANNELS), "float32", rate=RATE, names=names)
            },
            targets={"speaker": Target("class", classes=SPEAKERS, frequencies=frequencies)},
        ),
        rows=packed.rows_by_split(examples.split),
        compose=functools.partial(_compose, x, mask, y, noise),
        draws=2 if noise else 0,
        assets={"series.json": json.dumps({"mean": mean.tolist(), "std": std.tolist()}).encode()},
        describe=lambda id: f"speaker {SPEAKERS[y[id]]}, utterance {id}",
        augment=noise > 0,
        seed=seed,
    )


def _compose(
    x: np.ndarray,
    mask: np.ndarray,
    y: np.ndarray,
    noise: NonNegative,
    rows: np.ndarray,
    chance: np.ndarray | None,
) -> Batch:
    """Row r is utterance r."""
    heard = x[rows]
    if chance is not None:
        heard = packed.noisy(heard, noise, chance) * mask[rows][..., None]
    present = np.ones(len(rows), bool)
    return {
        "inputs": {"series": {"x": heard, "mask": mask[rows], "present": present}},
        "targets": {"speaker": {"y": y[rows], "present": present}},
        "id": rows.astype(np.int32),
    }
