"""Makes the packed vowels, once, from a wheel that carries the UCI Japanese Vowels data.

    pip download --no-deps aeon==1.6.0
    python -m mtmm_jax.data.sources.vowels.pack --wheel aeon-1.6.0-py3-none-any.whl

Two runs give the same bytes. Users never need it: the asset is part of the package.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from mtmm_jax.data.sources import packed
from mtmm_jax.data.sources.vowels import asset, card

LIMIT = 1_000_000  # bytes
_FILE = "aeon/datasets/data/JapaneseVowels/JapaneseVowels_{}.ts"
MEMBERS = {
    _FILE.format("TRAIN"): "68a430eabd919cc77f40b1f5f3bc0dcafacc1486bca9260785aeb7d262cc78cd",
    _FILE.format("TEST"): "b3d41d6a0ca3bcad3afb9ca7d4365382aa51341e2e58bae2a574babdda5b9462",
}
HELD_OUT = {"validation": 0.2}  # of the official training utterances


def read_series(text: str) -> Iterator[tuple[np.ndarray, str]]:
    """`([T, channels], label)` of each line after `@data`: channels, then the label, by colons."""
    lines = text.splitlines()
    for line in lines[lines.index("@data") + 1 :]:
        *channels, label = line.split(":")
        yield np.array([channel.split(",") for channel in channels], np.float32).T, label


def pack(files: Mapping[str, bytes], out: Path) -> None:
    """Writes the asset into `out`."""
    train, test = (list(read_series(x.decode())) for x in files.values())
    places = [str(i) for i in range(len(train))]
    dealt = packed.deal(places, HELD_OUT, [speaker for _, speaker in train])
    utterances = [asset.Utterance(*one, split) for one, split in zip(train, dealt, strict=True)]
    asset.write(out, utterances + [asset.Utterance(*one, "test") for one in test])


def main(arguments: Sequence[str] | None = None) -> int:
    return packed.main("vowels", __doc__, LIMIT, MEMBERS, pack, card.render, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
