"""The digits as a TFDS data set: array_record files, no TensorFlow."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from mtmm_jax.data.pipeline.source import SPLITS
from mtmm_jax.data.sources.digits import asset


class Builder(tfds.core.GeneratorBasedBuilder):
    """See CARD.md. One example is one handwritten digit in all six views, as published."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "UCI Multiple Features: 2,000 digits."}

    def _info(self) -> tfds.core.DatasetInfo:
        views = {
            name: tfds.features.Tensor(shape=(columns,), dtype=np.float32)
            for name, columns in asset.VIEWS.items()
        }
        digit = tfds.features.ClassLabel(names=asset.DIGITS)
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict({"id": np.int32, "digit": digit, **views}),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        views = {name: asset.read_view(name) for name in asset.VIEWS}
        return {split: self._generate_examples(views, split) for split in SPLITS}

    def _generate_examples(
        self, views: dict[str, np.ndarray], split: str
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for i, (digit, part) in enumerate(zip(*asset.read_labels(), strict=True)):
            if part == split:
                seen = {name: rows[i] for name, rows in views.items()}
                yield i, {"id": i, "digit": digit, **seen}
