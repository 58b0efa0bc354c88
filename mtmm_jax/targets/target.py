"""`Target`: what a source knows of one label."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from mtmm_jax.registry import ConfigError, choose


@dataclasses.dataclass(frozen=True)
class Target:
    """Kind, shape and statistics of one label, as a source declares it.

    Attributes:
        kind: an entry of `TARGETS`, where each says what its `y` looks like.
        classes: the names of the classes, in the order of their indices.
        frequencies: of the classes in the train split.
        mean, std: of a number, or of all coordinates of a path, on the train split; losses see it
            standardised, metrics do not.
        made_from: the modalities that the label can be read off; a task with this label may not
            read them.
        length: of tokens or a wave, or the number of boxes that there is room for.
        rate: of a wave, in samples per second.
        shape: of a mask `[height, width]` or a path `[points, coordinates]`.
    """

    kind: str
    classes: tuple[str, ...] = ()
    frequencies: tuple[float, ...] = ()
    mean: float = 0.0
    std: float = 1.0
    made_from: tuple[str, ...] = ()
    length: int = 0
    rate: float | None = None
    shape: tuple[int, ...] = ()

    @property
    def traits(self) -> Any:
        """The entry of `TARGETS` for this kind: a `TargetKind`."""
        from mtmm_jax.targets import TARGETS  # whose entries import this file

        return TARGETS[choose(self.kind, TARGETS, "target.kind")]

    def is_a(self, *kinds: str) -> bool:
        """Whether the label is of one of these kinds, or of one that is `like` one of them."""
        return not {self.kind, *self.traits.like}.isdisjoint(kinds)

    def blank(self, batch_size: int) -> Any:
        """`y` of a batch without labels: zeros of the right shape and dtype."""
        return self.traits.blank(self, batch_size)

    def check(self, y: Any, where: str) -> None:
        """Raises a `ConfigError` where `y` of a batch has another structure or shape."""
        blank = self.blank(1)
        if jax.tree.structure(y) != jax.tree.structure(blank):
            raise ConfigError(
                f"{where}: is {jax.tree.structure(y)}; the spec says {jax.tree.structure(blank)}"
            )
        others = self.traits.shapes(self)
        for found, wanted in zip(jax.tree.leaves(y), jax.tree.leaves(blank), strict=True):
            shape = np.shape(found)
            if not shape or shape[1:] not in (wanted.shape[1:], *others):
                raise ConfigError(
                    f"{where}: is {np.asarray(found).dtype}{list(shape)}; the spec says "
                    f"{wanted.dtype}{['B', *wanted.shape[1:]]}"
                )

    def described_by(self, y: Any) -> Target:
        """The target with its statistics from labels `y`, none of them absent; the same target
        where there are no labels, or nothing is known of labels of this kind."""
        describe = self.traits.describe
        return self if describe is None or not len(jax.tree.leaves(y)[0]) else describe(self, y)

    def standardise(self, y: Any) -> Any:
        """`y` as losses see it: of mean 0 and deviation 1 over the train split."""
        return self.traits.standardise(self, y)

    def undo(self, z: Any) -> Any:
        """The inverse of `standardise`: back to the label's own units."""
        return self.traits.undo(self, z)
