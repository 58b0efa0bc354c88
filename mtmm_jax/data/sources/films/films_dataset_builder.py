"""The films as a TFDS data set: array_record files, no TensorFlow."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from mtmm_jax.data.pipeline.source import SPLITS
from mtmm_jax.data.sources.films import asset

_TEXTS = ("imdb", "title", "director", "writer", "cast", "production", "rating")
_LISTS = ("languages", "countries", "genres")
_NUMBERS = ("month", "runtime", "tomatometer", "metacritic", "box_office", "reviews")


class Builder(tfds.core.GeneratorBasedBuilder):
    """See CARD.md. Lists are joined by newlines; an unknown number is not-a-number."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "Wikidata of 2026-10-18: films of 1940 to 2014."}

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    **dict.fromkeys(("id", "year", "oscars"), np.int32),
                    **{key: tfds.features.Text() for key in (*_TEXTS, *_LISTS)},
                    **dict.fromkeys(_NUMBERS, np.float32),
                }
            ),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        films = asset.read()
        return {split: self._generate_examples(films, split) for split in SPLITS}

    def _generate_examples(
        self, films: list[asset.Film], split: str
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for i, film in enumerate(films):
            if film.split != split:
                continue
            row = {**vars(film)}
            row.pop("split")
            for key in _LISTS:
                row[key] = "\n".join(row[key])
            for key in _NUMBERS:
                row[key] = np.nan if row[key] is None else row[key]
            yield i, {"id": i, **row}
