"""Decoders: from one column's files to arrays, as a store of decoded files needs them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Decoder:
    """From the name of a file to what a batch is made of, without anything that is drawn at random.

    Attributes:
        kind: of the modality.
        options: all that the result depends on but for the file and `Limits`, as JSON: sizes,
            rates, versions of libraries.
        decode: name -> value; raises `Unreadable`. None: better decoded in every epoch.
        pack: value -> what JSON holds of it, and its array.
        unpack: `(JSON, array) -> value`, exactly as `decode` gives it.
        otherwise: instead of `decode`, for a file that is not stored.
    """

    kind: str
    options: Mapping[str, Any]
    decode: Callable[[str], Any]
    pack: Callable[[Any], tuple[Mapping[str, Any], np.ndarray]]
    unpack: Callable[[Mapping[str, Any], np.ndarray], Any]
    otherwise: Callable[[str], Any] | None = None

    def now(self, name: str) -> Any:
        """A file that is not stored."""
        return (self.otherwise or self.decode)(name)
