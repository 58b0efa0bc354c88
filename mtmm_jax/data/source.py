"""A source: what is known of a data set (its `Spec`), and how batches come out of it.

Everything is in memory; batches are made whole, by NumPy, in one background thread. The state of
the training iterator is the number of batches returned: resuming is exact.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from mtmm_jax.batch import Batch, Spec
from mtmm_jax.registry import ConfigError, choose

if TYPE_CHECKING:
    import grain

SPLITS = ("train", "validation", "test")
_AHEAD = 2  # batches that are made while the device works


@dataclasses.dataclass(frozen=True)
class Source:
    """A data set ready to train on.

    Attributes:
        name: its entry in `SOURCES`.
        spec: modalities and targets.
        rows: split -> the examples in it, as indices that `compose` understands.
        compose: `(rows [B], chance)` -> batch without `weight`. `chance` is `[B, draws]` uniform
            numbers that decide each example's augmentation, or `None` for none: an example's
            augmentation depends on its own row of numbers only, so that a batch can be made in
            parts, on several hosts, and still be the same batch.
        draws: how many random numbers an example's augmentation takes.
        assets: files that the workdir keeps so that `predict` needs nothing else.
        describe: id -> what the example shows, in words.
        picture: id -> `[H, W, 3]` uint8, for reports.
        augment: whether training batches are augmented.
        seed: of shuffling and augmentation, unless `train` is given one.
    """

    name: str
    spec: Spec
    rows: Mapping[str, np.ndarray]
    compose: Callable[[np.ndarray, np.ndarray | None], Batch]
    draws: int
    assets: Mapping[str, bytes]
    describe: Callable[[int], str]
    picture: Callable[[int], np.ndarray]
    augment: bool = True
    seed: int = 0

    @property
    def size(self) -> int:
        """Training examples in an epoch."""
        return self.split_size("train")

    def split_size(self, split: str) -> int:
        """Examples in one pass over a split."""
        return len(self.rows[choose(split, self.rows, f"data.{self.name}", "split")])

    def epoch_steps(self, batch_size: int) -> float:
        """Training batches in an epoch; batches run on across its end, so this is a fraction."""
        return self.size / batch_size

    def train(
        self, batch_size: int, *, seed: int | None = None, shard: tuple[int, int] = (0, 1)
    ) -> grain.IterDataset[Batch]:
        """Endless training batches: a `grain.IterDataset`, shuffled anew in each epoch.

        Args:
            batch_size: of the global batch.
            seed: of shuffling and augmentation; the source's own by default.
            shard: `(index, count)`: this host's part of each global batch, rows
                `index * batch_size / count` onwards. The global batch does not depend on it.
        """
        import grain  # slow to import, and evaluation does without it

        index, count = shard
        if not 0 <= index < count:
            raise ConfigError(f"shard: {shard} is not (index, count) with 0 <= index < count")
        if batch_size < 1 or batch_size % count:
            raise ConfigError(f"batch_size: {batch_size} does not divide into {count} shards")
        part = slice(index * batch_size // count, (index + 1) * batch_size // count)
        rows = self.rows["train"]

        def make(places: np.ndarray, random: np.random.Generator) -> Batch:
            chance = random.random((batch_size, self.draws), np.float32) if self.augment else None
            chosen = rows[places[part]]
            batch = self.compose(chosen, None if chance is None else chance[part])
            return {**batch, "weight": np.ones(len(chosen), np.float32)}

        return (
            grain.MapDataset.range(len(rows))
            .seed(self.seed if seed is None else seed)
            .shuffle()
            .repeat()
            .batch(batch_size)
            .random_map(make)
            .to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=_AHEAD))
        )

    def batches(self, split: str, batch_size: int) -> Iterator[Batch]:
        """One pass over a split in a fixed order, without augmentation.

        All batches have `batch_size` rows: those that fill up the last one repeat an example, with
        weight 0 and id -1.
        """
        size = self.split_size(split)
        rows = self.rows[split]
        for start in range(0, size, batch_size):
            places = np.arange(start, start + batch_size)
            real = places < size
            batch = self.compose(rows[np.minimum(places, size - 1)], None)
            yield {
                **batch,
                "id": np.where(real, batch["id"], -1).astype(np.int32),
                "weight": real.astype(np.float32),
            }
