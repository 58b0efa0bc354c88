"""What every encoder is: a stem, and a body in two halves, run one after the other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from mtmm_jax.batch import Tokens


class Encoder(nn.Module):
    """`second(first(stem(entry)))`; subclasses say what these are.

    Attributes:
        width: of the tokens it gives.
    """

    width: int

    def stem(self, entry: Mapping[str, Any], **mode: Any) -> Tokens:
        raise NotImplementedError

    def first(self, tokens: Tokens, **mode: Any) -> Tokens:
        raise NotImplementedError

    def second(self, tokens: Tokens, **mode: Any) -> Tokens:
        raise NotImplementedError

    def __call__(
        self, entry: Mapping[str, Any], *, train: bool = False, axis_name: str | None = None
    ) -> Tokens:
        mode = {"train": train, "axis_name": axis_name}
        return self.second(self.first(self.stem(entry, **mode), **mode), **mode)
