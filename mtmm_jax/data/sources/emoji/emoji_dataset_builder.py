"""The emoji as a TFDS data set: array_record files, no TensorFlow.

One example is one concept: both drawings, both utterances, name and labels.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from mtmm_jax.data.sources.emoji import asset


def decoders() -> dict[str, Any]:
    """Pictures are left as they are: TFDS would ask for OpenCV."""
    return {"images": {style: tfds.decode.SkipDecoding() for style in asset.STYLES}}


class Builder(tfds.core.GeneratorBasedBuilder):
    """See CARD.md for what is real, what is synthetic, the counts and the licences."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "Emoji 16.0: two drawing styles, names, four voices."}

    def _info(self) -> tfds.core.DatasetInfo:
        table = asset.read_table()
        tile = (asset.TILE, asset.TILE, 4)
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "id": np.int32,
                    "code": tfds.features.Text(),
                    "name": tfds.features.Text(),
                    "keywords": tfds.features.Text(),
                    "category": tfds.features.ClassLabel(names=table.unique("category")),
                    "subcategory": tfds.features.ClassLabel(names=table.unique("subcategory")),
                    "year": np.int32,
                    "images": {style: tfds.features.Image(shape=tile) for style in asset.STYLES},
                    "speech": {
                        # As raw bytes: TFDS would otherwise widen every sample to 64 bits.
                        at: tfds.features.Tensor(shape=(None,), dtype=np.int16, encoding="bytes")
                        for at in asset.UTTERANCES
                    },
                    "voices": {
                        at: tfds.features.ClassLabel(names=table.voices) for at in asset.UTTERANCES
                    },
                }
            ),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        table = asset.read_table()
        with ThreadPoolExecutor() as pool:
            voices = pool.map(lambda v: asset.read_speech(asset.FOLDER, v), table.voices)
            count = len(table.concepts)
            styles = pool.map(
                lambda s: _pngs(asset.read_drawings(asset.FOLDER, s, count)), asset.STYLES
            )
            images = dict(zip(asset.STYLES, styles, strict=True))
            streams = dict(zip(table.voices, voices, strict=True))
        return {
            split: self._generate_examples(table.concepts, split, images, streams)
            for split in asset.SPLITS
        }

    def _generate_examples(
        self,
        concepts: Sequence[asset.Concept],
        split: str,
        images: dict[str, list[bytes]],
        streams: dict[str, np.ndarray],
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for i, concept in enumerate(concepts):
            if concept.split != split:
                continue
            spoken = zip(asset.UTTERANCES, concept.voices, concept.spans, strict=True)
            yield (
                i,
                {
                    "id": i,
                    "code": concept.code,
                    "name": concept.name,
                    "keywords": "\n".join(concept.keywords),
                    "category": concept.category,
                    "subcategory": concept.subcategory,
                    "year": concept.year,
                    "images": {style: images[style][i] for style in asset.STYLES},
                    "speech": {
                        at: streams[voice][start:stop] for at, voice, (start, stop) in spoken
                    },
                    "voices": dict(zip(asset.UTTERANCES, concept.voices, strict=True)),
                },
            )


def _pngs(tiles: np.ndarray) -> list[bytes]:
    """Fast rather than small: these files live in a cache."""

    def png(tile: np.ndarray) -> bytes:
        out = io.BytesIO()
        Image.fromarray(tile, "RGBA").save(out, "PNG", compress_level=1)
        return out.getvalue()

    return [png(tile) for tile in tiles]
