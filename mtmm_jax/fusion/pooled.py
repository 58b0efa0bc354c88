"""Late fusion of pooled features: concatenation and learned weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from mtmm_jax.batch import Tokens
from mtmm_jax.layers import gelu


def _one(x: jax.Array, tokens: Mapping[str, Tokens]) -> Tokens:
    """A pooled vector as one token, present where any modality is."""
    present = jnp.stack([t.present for t in tokens.values()]).any(0)
    return Tokens(x[:, None], present[:, None])


class Concat(nn.Module):
    """h = W [mean(x_1); ..; mean(x_M)], with a learned stand-in for the mean of an absent modality.

    Attributes:
        width: of the token it gives.
        hidden: of an optional hidden layer before it; 0 for none.
    """

    width: int
    hidden: int = 0

    modalities: ClassVar[tuple[int, int | None]] = (1, None)
    keeps_layout: ClassVar[bool] = False

    @nn.compact
    def __call__(
        self, tokens: Mapping[str, Tokens], *, train: bool = False, axis_name: str | None = None
    ) -> Tokens:
        del train, axis_name
        parts = []
        for name, part in sorted(tokens.items()):
            absent = self.param(
                f"absent_{name}", nn.initializers.zeros, (part.values.shape[-1],)
            ).astype(part.values.dtype)
            pooled = nn.LayerNorm(name=f"norm_{name}")(part.mean())
            parts.append(jnp.where(part.present[:, None], pooled, absent))
        x = jnp.concatenate(parts, axis=-1)
        if self.hidden:
            x = gelu(nn.Dense(self.hidden, name="hidden")(x))
        return _one(nn.Dense(self.width, name="out")(x), tokens)


class Weighted(nn.Module):
    """h = sum_m a_m W_m mean(x_m), a = softmax over the present modalities.

    Attributes:
        width: of the token it gives.
        by_sample: whether a depends on the sample (a = softmax_m(u_m . mean(x_m))) or is one
            learned number a modality.
    """

    width: int
    by_sample: bool = False

    modalities: ClassVar[tuple[int, int | None]] = (1, None)
    keeps_layout: ClassVar[bool] = False

    @nn.compact
    def __call__(
        self, tokens: Mapping[str, Tokens], *, train: bool = False, axis_name: str | None = None
    ) -> Tokens:
        del train, axis_name
        values, scores, present = [], [], []
        for name, part in sorted(tokens.items()):
            pooled = nn.LayerNorm(name=f"norm_{name}")(part.mean())
            values.append(nn.Dense(self.width, name=f"value_{name}")(pooled))
            if self.by_sample:
                scores.append(nn.Dense(1, name=f"score_{name}")(pooled)[:, 0])
            else:
                score = self.param(f"score_{name}", nn.initializers.zeros, ())
                scores.append(jnp.broadcast_to(score.astype(pooled.dtype), pooled.shape[:1]))
            present.append(part.present)
        allowed = jnp.stack(present, axis=-1)
        logits = jnp.where(allowed, jnp.stack(scores, axis=-1), jnp.finfo(jnp.float32).min)
        weights = jnp.where(allowed, nn.softmax(logits), 0.0)
        self.sow("intermediates", "modality_weights", weights)
        return _one(jnp.einsum("bm,mbd->bd", weights, jnp.stack(values)), tokens)
