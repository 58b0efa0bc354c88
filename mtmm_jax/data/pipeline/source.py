"""A source: what is known of a data set (its `Spec`), and how batches come out of it.

Batches are made whole, by NumPy and decoders that let go of the interpreter, in background threads.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Container, Iterator, Mapping
from typing import Any

import numpy as np

from mtmm_jax.batch import Batch, Spec
from mtmm_jax.chance import Order, uniform
from mtmm_jax.data.pipeline.mixing import Mixing, Plan, accumulate
from mtmm_jax.registry import ConfigError, choose

SPLITS = ("train", "validation", "test")
_AHEAD = 2  # batches that are made while the device works
_FOREVER = 2**40


@dataclasses.dataclass(frozen=True)
class Source:
    """A data set ready to train on.

    Attributes:
        name: its entry in `SOURCES`.
        spec: modalities and targets.
        rows: split -> the examples in it, as indices that `compose` understands.
        compose: `(rows [B], chance)` -> batch; `weight` only if some rows are to count less than
            others, such as 0 for one that cannot be read. `chance` is `[B, draws]` uniform numbers
            that decide each example's augmentation, or `None` for none: an example's augmentation
            depends on its own row of numbers only, so that a batch can be made in parts, on
            several hosts, and still be the same batch.
        draws: how many random numbers an example's augmentation takes.
        assets: files that the workdir keeps so that `predict` needs nothing else.
        describe: id -> what the example shows, in words.
        picture: id -> `[H, W, 3]` uint8, for reports; None where there is nothing to see.
        augment: whether training batches are augmented.
        seed: of shuffling and augmentation, unless `train` is given one.
        parts: the train split in the parts that `mixing` weighs; all of it by default.
        mixing: how the parts share the batches.
        carries: what each part has of the spec, where they differ.
        workers: threads that make batches, each a whole one; 0 makes them when asked for.
        finish: what is done to every finished batch, of training and evaluation; it is given the
            rows of the global batch, so that all hosts do the same.
        prepare: called before training batches are made, such as to decode all files once.
        raw: rows -> each one's cells as they stand in the table, by column; None where the data
            are no table.
    """

    name: str
    spec: Spec
    rows: Mapping[str, np.ndarray]
    compose: Callable[[np.ndarray, np.ndarray | None], Batch]
    draws: int
    assets: Mapping[str, bytes]
    describe: Callable[[int], str]
    picture: Callable[[int], np.ndarray] | None = None
    augment: bool = True
    seed: int = 0
    parts: tuple[np.ndarray, ...] = ()
    mixing: Mixing = dataclasses.field(default_factory=accumulate)
    carries: tuple[Spec, ...] = ()
    workers: int = 1
    finish: Callable[[Batch, np.ndarray], Batch] = lambda batch, rows: batch
    prepare: Callable[[], None] = lambda: None
    raw: Callable[[np.ndarray], list[Mapping[str, Any]]] | None = None

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
    ) -> Training:
        """Endless training batches, each part of the data shuffled anew in each of its epochs.

        Args:
            batch_size: of the global batch.
            seed: of shuffling and augmentation; the source's own by default.
            shard: `(index, count)`: this host's part of each global batch, rows
                `index * batch_size / count` onwards. The global batch does not depend on it.
        """
        index, count = shard
        if not 0 <= index < count:
            raise ConfigError(f"shard: {shard} is not (index, count) with 0 <= index < count")
        if batch_size < 1 or batch_size % count:
            raise ConfigError(f"batch_size: {batch_size} does not divide into {count} shards")
        self.prepare()
        return Training(self, batch_size, self.seed if seed is None else seed, shard)

    @property
    def train_parts(self) -> tuple[np.ndarray, ...]:
        """The rows of each part of the training split."""
        return self.parts or (self.rows["train"],)

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
            chosen = rows[np.minimum(places, size - 1)]
            batch = weighted(self.compose(chosen, None))
            ids = np.where(real, batch["id"], -1).astype(np.int32)
            whole = {**batch, "id": ids, "weight": real * batch["weight"]}
            yield self.finish(whole, chosen)


def split_sizes(source: Source, bad: Container[int] = ()) -> dict[str, int]:
    """The number of rows of each split that are used: all but those known to be bad."""
    return {
        split: sum(row not in bad for row in rows.tolist()) for split, rows in source.rows.items()
    }


def weighted(batch: Batch) -> Batch:
    """With its `weight`, ones unless the source has another."""
    if "weight" in batch:
        return batch
    return {**batch, "weight": np.ones(len(batch["id"]), np.float32)}


class Training:
    """An iterator over the training batches of a source, a Grain pipeline inside.

    Its state is the number of batches returned and the shares of the parts: resuming is exact,
    with any number of workers.
    """

    def __init__(self, source: Source, batch_size: int, seed: int, shard: tuple[int, int]) -> None:
        self.source, self.batch_size = source, batch_size
        self._parts = source.train_parts
        sizes = [len(part) for part in self._parts]
        if not all(sizes):
            raise ConfigError(f"data.{source.name}: a part of its train split has no rows: {sizes}")
        self._orders = [Order(size, seed, i) for i, size in enumerate(sizes)]
        self._seed = seed
        index, count = shard
        self._slice = slice(index * batch_size // count, (index + 1) * batch_size // count)
        self._start(0, Plan(tuple(source.mixing.shares(sizes).tolist()), source.mixing.per))

    def _start(self, step: int, plan: Plan) -> None:
        """A pipeline from `step` on; what an older one made ahead is forgotten."""
        self.step, self._plan = step, plan
        if self.source.workers == 0:
            self._batches = map(self._make, itertools.count(step))
            return
        import grain  # slow to import, and evaluation does without it

        options = grain.ReadOptions(
            num_threads=self.source.workers,
            prefetch_buffer_size=max(_AHEAD, 2 * self.source.workers),
        )
        self._batches = iter(
            grain.MapDataset.range(step, _FOREVER).map(self._make).to_iter_dataset(options)
        )

    def _make(self, step: int) -> Batch:
        part, position = self._plan.rows(int(step), self.batch_size)
        epoch, place, rows = (np.zeros_like(part) for _ in range(3))
        for i in np.unique(part):
            here = part == i
            epoch[here], place[here] = self._orders[i](position[here])
            rows[here] = self._parts[i][place[here]]
        mine, chance = self._slice, None
        if self.source.augment and self.source.draws:
            coordinates = (part[mine], epoch[mine], place[mine])
            chance = uniform(self.source.draws, self._seed, *coordinates)
        return self.source.finish(weighted(self.source.compose(rows[mine], chance)), rows)

    def __iter__(self) -> Training:
        return self

    def __next__(self) -> Batch:
        batch = next(self._batches)
        self.step += 1
        return batch

    @property
    def epochs(self) -> tuple[float, ...]:
        """The number of epochs of each part so far."""
        taken = self._plan.before(self.step, self.batch_size)
        return tuple(n / len(part) for n, part in zip(taken.tolist(), self._parts, strict=True))

    @property
    def shares(self) -> tuple[float, ...]:
        return self._plan.shares

    def observe(self, scores: np.ndarray) -> None:
        """A score for each part, larger is better, for the mixings that look at them."""
        change = self.source.mixing.observe
        if change is not None:
            shares = change(np.array(self._plan.shares), np.asarray(scores, np.float64))
            self._start(self.step, self._plan.change(shares, self.step, self.batch_size))

    def get_state(self) -> dict[str, Any]:
        """JSON."""
        return {"step": self.step, "plan": dataclasses.asdict(self._plan)}

    def set_state(self, state: Mapping[str, Any]) -> None:
        plan = {k: tuple(v) if isinstance(v, list) else v for k, v in state["plan"].items()}
        if len(plan["shares"]) != len(self._parts):
            raise ConfigError(
                f"data: the checkpoint mixes {len(plan['shares'])} parts, the config "
                f"{len(self._parts)}"
            )
        self._start(state["step"], Plan(**plan))
