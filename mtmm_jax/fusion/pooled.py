"""Late fusion of pooled features: concatenation, means, and weights learned or fixed.

Also what all fusions of pooled features share: `PooledFusion.features` on the way in, `single` on
the way out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from mtmm_jax.batch import Tokens, check_tokens, choose_all
from mtmm_jax.layers import LayerNorm, gelu
from mtmm_jax.ranges import Positive, Size, SizeOrZero
from mtmm_jax.registry import ConfigError, check, check_fields, choose


def present_shares(logits: jax.Array, present: jax.Array) -> jax.Array:
    """Softmax over the last axis among the present ones; zeros where none is."""
    least = jnp.finfo(logits.dtype).min
    weights = jax.nn.softmax(jnp.where(present, logits, least))
    return jnp.where(present, weights, jnp.zeros((), weights.dtype))


def check_shares(weights: Mapping[str, float], names: Sequence[str], where: str) -> list[float]:
    """Fixed shares in the order of `names`, each above 0; every modality has one."""
    choose_all(weights, names, where, "modality")
    missing = [name for name in names if name not in weights]
    if missing:
        raise ConfigError(f"{where}: no weight for {', '.join(missing)}")
    check(weights, Mapping[str, Positive], where)
    return [float(weights[name]) for name in names]


class PooledFusion(nn.Module):
    """Base of the fusions of pooled features; `modalities` and `keeps_layout` are theirs."""

    def __post_init__(self) -> None:
        check_fields(self, "model.fusion")
        super().__post_init__()

    def features(
        self, tokens: Mapping[str, Tokens]
    ) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        """`{modality: x_m [B, D_m]}`, the normed mean of its tokens, and `{modality: present
        [B, 1]}`, both in the order of the names. To be called inside a compact method, whose
        limits are checked first.
        """
        check_tokens(tokens, "model.fusion")
        fewest, most = self.modalities
        if not fewest <= len(tokens) <= (most or len(tokens)):
            limits = f"{fewest} or more" if most is None else f"{fewest} to {most}"
            raise ConfigError(
                f"model.fusion: {type(self).__name__} fuses {limits} modalities, not "
                f"{len(tokens)}: {', '.join(sorted(tokens)) or 'none'}"
            )
        names = sorted(tokens)
        x = {name: LayerNorm(name=f"norm_{name}")(tokens[name].mean()) for name in names}
        return x, {name: tokens[name].present[:, None] for name in names}


def single(x: jax.Array, tokens: Mapping[str, Tokens]) -> Tokens:
    """`x[B, D]` as one token, present where any modality is."""
    present = jnp.stack([t.present for t in tokens.values()]).any(0)
    return Tokens(x[:, None], present[:, None])


def linear(x: jax.Array, size: int, name: str, **options: Any) -> jax.Array:
    """W x + b in the dtype of x."""
    return nn.Dense(size, dtype=x.dtype, name=name, **options)(x)


def query_first(names: Iterable[str], query: str | None) -> list[str]:
    """The names with `query` at the head; None: the first of the alphabet."""
    names = sorted(names)
    first = names[0] if query is None else choose(query, names, "model.fusion.query", "modality")
    return [first, *(name for name in names if name != first)]


class Concat(PooledFusion):
    """h = W [mean(x_1); ..; mean(x_M)], with a learned stand-in for the mean of an absent modality.

    Costs one matrix a modality, (sum of the D_m) x width. Use it: as the baseline to beat, with
    complete rows. Not: where any subset of many modalities may be absent, as a stand-in is learned
    for each.

    Attributes:
        width: of the token it gives.
        hidden: of an optional hidden layer before it; 0 for none.
    """

    width: Size
    hidden: SizeOrZero = 0

    modalities: ClassVar[tuple[int, int | None]] = (1, None)
    keeps_layout: ClassVar[bool] = False

    @nn.compact
    def __call__(
        self, tokens: Mapping[str, Tokens], *, train: bool = False, axis_name: str | None = None
    ) -> Tokens:
        del train, axis_name
        pooled, present = self.features(tokens)
        parts = []
        for name, x in pooled.items():
            absent = self.param(f"absent_{name}", nn.initializers.zeros, (x.shape[-1],))
            parts.append(jnp.where(present[name], x, absent.astype(x.dtype)))
        x = jnp.concatenate(parts, axis=-1)
        if self.hidden:
            x = gelu(linear(x, self.hidden, "hidden"))
        return single(linear(x, self.width, "out"), tokens)


class Mean(PooledFusion):
    """h = the mean over the present m of W_m mean(x_m).

    Costs one matrix a modality. Use it: where any subset may be present, and as the baseline that a
    weighing, gating or multiplying fusion has to beat. Not: where only two modalities together show
    the answer.

    Attributes:
        width: of the token it gives.
    """

    width: Size

    modalities: ClassVar[tuple[int, int | None]] = (1, None)
    keeps_layout: ClassVar[bool] = False

    @nn.compact
    def __call__(
        self, tokens: Mapping[str, Tokens], *, train: bool = False, axis_name: str | None = None
    ) -> Tokens:
        del train, axis_name
        pooled, present = self.features(tokens)
        here = jnp.concatenate(list(present.values()), axis=-1)
        weights = present_shares(jnp.zeros(here.shape), here)
        self.sow("intermediates", "modality_weights", weights)
        return _weighted_sum(self.width, pooled, weights, tokens)


class Weighted(PooledFusion):
    """h = sum_m a_m W_m mean(x_m), a = softmax over the present modalities, or fixed.

    Costs one matrix and one number a modality. Use it: to read off, or to fix, how much each
    modality counts. Not: where the weights should depend on the sample (`gated_unit`).

    Attributes:
        width: of the token it gives.
        by_sample: whether a depends on the sample (a = softmax_m(u_m . mean(x_m))) or is one
            learned number a modality.
        weights: fixed a, one above 0 for every modality; they are divided by the sum of those
            that are present. None: learned.
    """

    width: Size
    by_sample: bool = False
    weights: Mapping[str, Positive] | None = None

    modalities: ClassVar[tuple[int, int | None]] = (1, None)
    keeps_layout: ClassVar[bool] = False

    @nn.compact
    def __call__(
        self, tokens: Mapping[str, Tokens], *, train: bool = False, axis_name: str | None = None
    ) -> Tokens:
        del train, axis_name
        pooled, present = self.features(tokens)
        here = jnp.concatenate(list(present.values()), axis=-1)
        if self.weights is not None:
            if self.by_sample:
                raise ConfigError(
                    "model.fusion.by_sample: True, but model.fusion.weights fixes the weights; "
                    "choose one of them"
                )
            shares = check_shares(self.weights, list(pooled), "model.fusion.weights")
            scores = jnp.broadcast_to(jnp.log(jnp.asarray(shares, jnp.float32)), here.shape)
        elif self.by_sample:
            columns = [linear(x, 1, f"score_{name}") for name, x in pooled.items()]
            scores = jnp.concatenate(columns, axis=-1).astype(jnp.float32)
        else:
            numbers = [self.param(f"score_{name}", nn.initializers.zeros, ()) for name in pooled]
            scores = jnp.broadcast_to(jnp.stack(numbers), here.shape)
        weights = present_shares(scores, here)
        self.sow("intermediates", "modality_weights", weights)
        return _weighted_sum(self.width, pooled, weights, tokens)


def _weighted_sum(
    width: int, pooled: Mapping[str, jax.Array], weights: jax.Array, tokens: Mapping[str, Tokens]
) -> Tokens:
    """sum_m a_m W_m x_m, a = `weights[B, M]`. To be called inside a compact method."""
    values = jnp.stack([linear(x, width, f"value_{name}") for name, x in pooled.items()])
    return single(jnp.einsum("bm,mbd->bd", weights.astype(values.dtype), values), tokens)
