"""The interface of transforms: a constructor that turns the form of its input into a `Stage`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mtmm_jax.modalities import is_like
from mtmm_jax.text import PADDING, UNKNOWN


@dataclasses.dataclass(frozen=True)
class Form:
    """Shape and dtype of the values between two stages of a pipe.

    Attributes:
        stage: "image_file" and "audio_file" (encoded bytes), "image" `[H, W, 3]`, "sound" (a pair
            of samples `[N]` and their own rate), "audio" `[N]` at a known rate, "string", "text"
            (token ids `[N]`), "table" `[columns]`, "series" `[T, channels]`, or another kind of
            modality.
        shape: of one example; `None` where it varies between examples.
        dtype: of its array.
        low, high: the range of a picture's values, `None` once it has been normalised away.
        rate: samples or steps per second.
        vocabulary: the number of token ids.
        padding, unknown: the ids that fill up, and that stand for a token that is not known.
        names: of columns or channels.
        masked: whether examples have been filled up, and carry a mask of what is real.
    """

    stage: str
    shape: tuple[int | None, ...] = ()
    dtype: str = "object"
    low: float | None = None
    high: float | None = None
    rate: float | None = None
    vocabulary: int | None = None
    names: tuple[str, ...] = ()
    masked: bool = False
    padding: int = PADDING
    unknown: int = UNKNOWN

    @property
    def stacks(self) -> bool:
        """Whether examples are arrays of one shape, so that a batch is one array."""
        return self.dtype != "object" and None not in self.shape

    @property
    def middle(self) -> float:
        """The middle of the range; 0 for a normalised picture, whose mean is near it."""
        return 0.0 if self.low is None else (self.low + self.high) / 2

    def is_a(self, *stages: str) -> bool:
        """Whether it is one of these stages, or of a kind of modality that is like one of them."""
        return is_like(self.stage, stages)

    def to_dict(self) -> dict[str, Any]:
        """JSON, in which the stage is called `kind`."""
        stage, *rest = dataclasses.asdict(self).items()
        return {"kind": stage[1], **dict(rest)}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Form:
        plain = {k: tuple(v) if isinstance(v, list) else v for k, v in value.items()}
        return cls(stage=plain.pop("kind"), **plain)

    def __str__(self) -> str:
        if self.dtype == "object":
            return self.stage
        sizes = ", ".join("?" if size is None else str(size) for size in self.shape)
        return f"{self.stage} {self.dtype}[{sizes}]"


Apply = Callable[[Any, Any], Any]


@dataclasses.dataclass(frozen=True)
class Stage:
    """One step of a pipe, ready to run.

    Attributes:
        out: the form of what it gives.
        apply: `(x [B, ...], u [B, draws] or None) -> [B, ...]`. With `each`, one example at a time:
            `(example, u [draws] or None) -> example`.
        draws: how many random numbers an example takes.
        plain: what to do instead of `apply` without random numbers; None to leave examples alone.
        each: whether it works on single examples even where they could be stacked.
        masks: whether `apply` gives pairs of an array and its mask; only with `each`.
        fit: examples of the train split as they arrive here -> what the stage must know of them,
            as a string to keep; for a stage that is not ready yet.
        load: what `fit` gave -> the stage, ready.
    """

    out: Form
    apply: Apply | None
    draws: int = 0
    plain: Apply | None = None
    each: bool = False
    masks: bool = False
    fit: Callable[[Sequence[Any]], str] | None = None
    load: Callable[[str], Stage] | None = None


@dataclasses.dataclass(frozen=True)
class Transform:
    """A row of `TRANSFORMS`.

    Attributes:
        build: `(form, where, *arguments) -> Stage`; its annotations are the arguments' types.
        takes: the stages that may come in, and kinds of modalities that are like them.
    """

    build: Callable[..., Stage]
    takes: tuple[str, ...]


def each(do: Callable[[Any], Any]) -> Apply:
    """A function of one example as `apply` of a stage without chance."""
    return lambda example, u: do(example)


def floating(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float32, copy=False)
