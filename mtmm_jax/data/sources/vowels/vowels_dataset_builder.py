"""The vowels as a TFDS data set: array_record files, no TensorFlow."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from mtmm_jax.data.pipeline.source import SPLITS
from mtmm_jax.data.sources.vowels import asset


class Builder(tfds.core.GeneratorBasedBuilder):
    """See CARD.md. One example is one utterance."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "UCI Japanese Vowels: 640 utterances of nine speakers."}

    def _info(self) -> tfds.core.DatasetInfo:
        shape = (None, asset.CHANNELS)
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "id": np.int32,
                    "series": tfds.features.Tensor(shape=shape, dtype=np.float32),
                    "speaker": tfds.features.ClassLabel(names=asset.SPEAKERS),
                }
            ),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        return {split: self._generate_examples(split) for split in SPLITS}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        for i, one in enumerate(asset.read()):
            if one.split == split:
                yield i, {"id": i, "series": one.series, "speaker": one.speaker}
