"""`TargetKind`: everything that depends on the kind of a label, with a default for all but one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from mtmm_jax.markup import CELLS
from mtmm_jax.targets.column import PlainColumn
from mtmm_jax.targets.target import Target

Array = Any  # of NumPy or of JAX
Words = Callable[[np.ndarray], str]  # token ids -> the text that the source's tokenizer makes


def no_shapes(target: Target) -> tuple[tuple[int, ...], ...]:
    return ()


def unchanged(target: Target, y: Any) -> Any:
    return y


def as_numbers(target: Target, y: Any, words: Words) -> str:
    """The first numbers of an example, in the order in which they are stored."""
    values = np.concatenate([np.ravel(np.asarray(leaf)) for leaf in jax.tree.leaves(y)])
    more = f" and {len(values) - CELLS:,} more" if len(values) > CELLS else ""
    return ", ".join(f"{float(value):.5g}" for value in values[:CELLS]) + more


@dataclasses.dataclass(frozen=True)
class Count:
    """Counting of labels for `show`, and its plot.

    Attributes:
        of: `(target, y of the labelled rows) -> [n, C]` per class, or `[n]` numbers.
        classes: whether there is a column for each class, drawn as bars; numbers are drawn as their
            mean, deviation, least and most.
        parts: what an example has any number of, such as "boxes": the shares are of those, not of
            examples.
    """

    of: Callable[[Target, Any], np.ndarray]
    classes: bool = False
    parts: str = ""


@dataclasses.dataclass(frozen=True)
class TargetKind:
    """A kind of label: an entry of `TARGETS`.

    `y` is a batch of labels `[B, ...]`, an array or a dict of arrays, unless it says otherwise.

    Attributes:
        blank: `(target, batch_size) -> y` of zeros, which says shape and dtype.
        shapes: target -> other shapes, without the batch, that `y` may have.
        like: kinds whose tasks take this kind as well: `Target.is_a`.
        count: what `show` counts of labels; None: nothing.
        describe: `(target, y) -> target` with the statistics of these labels; None: it has none.
        small: whether labels are small enough to keep those of all rows, so that `data.hide`,
            `data.held_out` and folds describe the target by the rows that are left; classes are
            kept in any case.
        value: `y -> [B]`, the one number or class index that a label comes down to, if it does.
        discrete: whether `value` is a class: classes can be held out, and `data.hide` keeps the
            same share of each.
        mixable: `(target, y) -> y` as floats of which a weighted mean is a label; None: mixup keeps
            labels as they are.
        standardise, undo: `(target, y) -> y` to and from the units of losses, by `mean` and `std`.
        column: the options and the reading of a manifest's column; None: it stands in no manifest.
        guess: cells of a column -> the options if they look like this kind, else None. Where
            several kinds claim a column, the last in the table has it.
        task: the task of a config that is written for such a column; empty: none is.
        html: `(target, y of one example, words) -> str`, with names escaped.
        wide: whether that takes the width of a card.
        places: `(target, y of one example) -> [(class name, [y0, x0, y1, x1] in 0..1)]`, drawn over
            the example's picture; None: nothing is.
    """

    blank: Callable[[Target, int], Any]
    shapes: Callable[[Target], tuple[tuple[int, ...], ...]] = no_shapes
    like: tuple[str, ...] = ()
    count: Count | None = None
    describe: Callable[[Target, Any], Target] | None = None
    small: bool = True
    value: Callable[[Any], np.ndarray] | None = None
    discrete: bool = False
    mixable: Callable[[Target, Array], Array] | None = None
    standardise: Callable[[Target, Any], Any] = unchanged
    undo: Callable[[Target, Any], Any] = unchanged
    column: Callable[..., Any] | None = PlainColumn
    guess: Callable[[Sequence[Any]], dict[str, Any] | None] | None = None
    task: str = ""
    html: Callable[[Target, Any, Words], str] = as_numbers
    wide: bool = False
    places: Callable[[Target, Any], list[tuple[str, np.ndarray]]] | None = None

    @property
    def kept(self) -> bool:
        """Whether the labels of all training rows are remembered once they have been seen."""
        return self.discrete or (
            self.small and (self.describe is not None or self.value is not None)
        )


def blank(dtype: Any, shape: Callable[[Target], tuple[int, ...]]) -> Callable[[Target, int], Any]:
    """`TargetKind.blank` of an array: zeros `[B, *shape(target)]`."""
    return lambda target, batch_size: np.zeros((batch_size, *shape(target)), dtype)
