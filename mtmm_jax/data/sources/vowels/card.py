"""The data card: prose and tables, the numbers counted from the asset."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np

from mtmm_jax.data.pipeline.source import SPLITS
from mtmm_jax.data.sources import packed
from mtmm_jax.data.sources.vowels import asset
from mtmm_jax.data.sources.vowels.asset import CHANNELS, RATE, SPEAKERS

_TEMPLATE = Path(__file__).with_name("card_template.md")


def render(folder: Path = asset.FOLDER) -> str:
    """The text of CARD.md for the asset in `folder`."""
    utterances = asset.read(folder)
    lengths = np.array([len(one.series) for one in utterances])
    split = np.array([one.split for one in utterances])
    counts = Counter((one.speaker, one.split) for one in utterances)
    of_split = Counter(split.tolist())
    std = np.concatenate([one.series for one in utterances]).std(0)
    lines = [[speaker, *(counts[speaker, split] for split in SPLITS)] for speaker in SPEAKERS]
    return _TEMPLATE.read_text(encoding="utf-8").format(
        utterances=len(utterances),
        speakers=len(SPEAKERS),
        channels=CHANNELS,
        rate=RATE,
        size=sum(path.stat().st_size for path in folder.iterdir()),
        shortest=lengths.min(),
        longest=lengths.max(),
        median=np.median(lengths),
        seconds=np.median(lengths) / RATE,
        low=std.min(),
        high=std.max(),
        lengths=packed.table(
            ["steps", *SPLITS],
            [
                [what, *(round(float(count(lengths[split == name]))) for name in SPLITS)]
                for what, count in {"least": np.min, "median": np.median, "most": np.max}.items()
            ],
        ),
        splits=packed.table(
            ["speaker", *SPLITS], [*lines, ["all", *(of_split[name] for name in SPLITS)]]
        ),
        train=of_split["train"],
    )
