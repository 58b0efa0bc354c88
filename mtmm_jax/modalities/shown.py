"""One example of a modality as HTML."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from mtmm_jax.markup import CELLS, escape
from mtmm_jax.modalities.modality import Modality


class Example(NamedTuple):
    """An example to be displayed.

    Attributes:
        name: of the modality.
        modality: what the spec has of it.
        x, mask: of the example; `mask` is None where there is none.
        boxes: class and place (y0, x0, y1, x1 in 0..1) of what is marked in a picture.
        decode: token ids -> text.
    """

    name: str
    modality: Modality
    x: np.ndarray
    mask: np.ndarray | None = None
    boxes: Sequence[tuple[str, np.ndarray]] = ()
    decode: Callable[[np.ndarray], str] = str

    @property
    def real(self) -> np.ndarray:
        """`x` without what is masked, along the first axis."""
        return self.x if self.mask is None else self.x[self.mask]


def as_numbers(example: Example) -> str:
    """The first numbers and the shape: what any array can be shown as."""
    x = np.asarray(example.real)
    flat = x.reshape(-1)
    size = " × ".join(str(n) for n in x.shape)
    shown = named_numbers([str(i) for i in range(len(flat))], flat, np.isfinite(flat))
    return f"<div class=faint>{escape(size)}</div>{shown}"


def named_numbers(names: Sequence[str], values: np.ndarray, known: np.ndarray) -> str:
    cells = [
        f"<div><span title='{escape(n)}'>{escape(n)}</span>{f'{v:.4g}' if ok else '–'}</div>"
        for n, v, ok in zip(names[:CELLS], values[:CELLS], known[:CELLS], strict=True)
    ]
    more = f"<div class=faint>and {len(values) - CELLS} more</div>" if len(values) > CELLS else ""
    return f"<div class=cells>{''.join(cells)}</div>{more}"


def names_of(modality: Modality, count: int) -> tuple[str, ...]:
    return modality.names or tuple(str(c) for c in range(count))
