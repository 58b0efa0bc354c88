"""No encoder at all: raw input, flattened and projected, for fusion of stage `early_raw`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from mtmm_jax.batch import Modality, Tokens
from mtmm_jax.encoders.encoder import Encoder, mask_of
from mtmm_jax.ranges import Size, SizeOrZero


class Raw(Encoder):
    """W flatten(x): one token. Token ids are embedded first; masked values are 0, and the mask
    itself is read next to them.

    It needs inputs of one size, since every place has weights of its own.

    Attributes:
        modality: the name that its token carries.
        vocabulary: the number of token ids; 0 for numbers.
        embedding: the width of an id's embedding.
    """

    modality: str = "raw"
    vocabulary: SizeOrZero = 0
    embedding: Size = 16

    @staticmethod
    def accepts(modality: Modality) -> bool:
        return None not in modality.shape

    def setup(self) -> None:
        if self.vocabulary:
            self.table = nn.Embed(self.vocabulary, self.embedding)
        self.project = nn.Dense(self.width, dtype=self.precision)

    def stem(self, entry: Mapping[str, Any], **mode: Any) -> Tokens:
        del mode
        x, known = entry["x"], mask_of(entry)
        if self.vocabulary:
            x = self.table(x)
        flat = [x.reshape(x.shape[0], math.prod(x.shape[1:]))]
        if "mask" in entry:
            weight = known.reshape(*known.shape, *(1,) * (x.ndim - 2)).astype(x.dtype)
            flat = [(x * weight).reshape(flat[0].shape), known.astype(x.dtype)]
        token = self.project(jnp.concatenate(flat, axis=-1)).astype(jnp.float32)
        return Tokens.of(token[:, None], entry["present"][:, None], self.modality)

    def first(self, tokens: Tokens, **mode: Any) -> Tokens:
        del mode
        return tokens

    def second(self, tokens: Tokens, **mode: Any) -> Tokens:
        del mode
        return tokens
