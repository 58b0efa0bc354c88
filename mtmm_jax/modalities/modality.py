"""`Modality`: what a source knows of one input."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Modality:
    """Kind, shape and dtype of one input, as a source declares it.

    Attributes:
        kind: a row of `modalities.MODALITIES`. An image is `[H, W, 3]` and a video `[T, H, W, 3]`,
            both in -1..1, audio is `[samples]` in -1..1, text `[tokens]` of ids with a mask, a
            table `[columns]`, a series `[T, channels]`; text, video and series have a mask where
            lengths vary.
        shape: of one example's `x`, without the batch; `None` where the length varies.
        dtype: of `x`.
        vocabulary: the number of token ids, for text.
        rate: samples, frames or steps per second, for audio, video and series.
        names: of a table's columns or a series' channels.
    """

    kind: str
    shape: tuple[int | None, ...]
    dtype: str
    vocabulary: int | None = None
    rate: float | None = None
    names: tuple[str, ...] = ()

    def is_a(self, *kinds: str) -> bool:
        """Whether it is of one of these kinds, or of a kind that is like one of them."""
        from mtmm_jax.modalities import is_like  # the table's rows are made of modalities

        return is_like(self.kind, kinds)
