"""Fusion by gates: one modality decides how much of the others passes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from mtmm_jax.batch import Tokens
from mtmm_jax.fusion.pooled import PooledFusion, linear, query_first, single
from mtmm_jax.ranges import Size


class Gated(PooledFusion):
    """h = W (sigma(U x) * y): x, the query, opens and shuts the channels of y.

    For two modalities y = V x_2; for more it is the mean of V_m x_m over the present others. An
    absent factor is 1: without the query y passes as it is, without any other the gate itself is
    what is left. With one modality y is 1 always: h = W sigma(U x).

    Paper: Kiela et al. 2018, arXiv:1802.02892. Costs one matrix a modality. Use it: for a modality
    that says which part of the others matters, such as a question. Not: where all are equals
    (`gated_unit`).

    Attributes:
        width: of the token it gives.
        query: the modality that gates; None: the first of the alphabet.
    """

    width: Size
    query: str | None = None

    modalities: ClassVar[tuple[int, int | None]] = (1, None)
    keeps_layout: ClassVar[bool] = False

    @nn.compact
    def __call__(
        self, tokens: Mapping[str, Tokens], *, train: bool = False, axis_name: str | None = None
    ) -> Tokens:
        del train, axis_name
        x, present = self.features(tokens)
        query, *others = query_first(x, self.query)
        y = _mean_of(others, x, present, self.width)
        gates = nn.sigmoid(linear(x[query], self.width, f"gate_{query}"))
        gates = jnp.where(present[query], gates, jnp.ones((), gates.dtype))
        self.sow("intermediates", "gates", gates)
        return single(linear(gates * y, self.width, "out"), tokens)


class GatedUnit(PooledFusion):
    """h = sum_m z_m * h_m, h_m = tanh(W_m x_m), z_m = sigma(U_m [x_1; ..; x_M]).

    The gated multimodal unit. With two modalities the gates are z and 1 - z, one set, and where one
    is absent the other has the gate 1; with more, each has its own and they need not sum to one.
    Absent modalities are left out of both sums, of h and of what the gates read.

    Paper: Arevalo et al. 2017, arXiv:1702.01992. Costs M^2 width^2 for the gates. Use it: as a
    strong default where every modality may matter, each in channels of its own. Not: with dozens of
    modalities.

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
        x, present = self.features(tokens)
        hidden = [nn.tanh(linear(x[name], self.width, f"hidden_{name}")) for name in x]
        read = [jnp.where(present[name], x[name], 0) for name in x]
        read = jnp.concatenate(read, axis=-1)
        count = 1 if len(x) == 2 else len(x)
        gates = nn.sigmoid(linear(read, count * self.width, "gate"))
        gates = gates.reshape(-1, count, self.width)
        here = jnp.stack(list(present.values()), axis=1)
        if len(x) == 2:
            gates = jnp.concatenate([gates, 1 - gates], axis=1)
            gates = jnp.where(here.all(1, keepdims=True), gates, jnp.ones((), gates.dtype))
        gates = jnp.where(here, gates, 0)
        self.sow("intermediates", "gates", gates)
        return single((gates * jnp.stack(hidden, axis=1)).sum(1), tokens)


class FiLM(PooledFusion):
    """h = W (gamma * y + beta), (gamma, beta) = split(U x): x, the query, scales and shifts y.

    Feature-wise linear modulation. For two modalities y = V x_2; for more it is the mean of V_m x_m
    over the present others. gamma starts around 1. Without the query gamma is 1 and beta 0; without
    any other y is 1, as an absent factor is. With one modality y is 1 always: h = W (gamma + beta),
    a linear map.

    Paper: Perez et al. 2018, arXiv:1709.07871. Costs one matrix a modality, two for the query. Use
    it: as `gated`, where the query may also add, or turn a sign. Not: without a leading modality.

    Attributes:
        width: of the token it gives.
        query: the modality that modulates; None: the first of the alphabet.
    """

    width: Size
    query: str | None = None

    modalities: ClassVar[tuple[int, int | None]] = (1, None)
    keeps_layout: ClassVar[bool] = False

    @nn.compact
    def __call__(
        self, tokens: Mapping[str, Tokens], *, train: bool = False, axis_name: str | None = None
    ) -> Tokens:
        del train, axis_name
        x, present = self.features(tokens)
        query, *others = query_first(x, self.query)
        y = _mean_of(others, x, present, self.width)
        film = linear(x[query], 2 * self.width, f"film_{query}", bias_init=_one_then_zero)
        gamma, beta = jnp.split(film, 2, axis=-1)
        gamma = jnp.where(present[query], gamma, jnp.ones((), gamma.dtype))
        beta = jnp.where(present[query], beta, 0)
        self.sow("intermediates", "gamma", gamma)
        self.sow("intermediates", "beta", beta)
        return single(linear(gamma * y + beta, self.width, "out"), tokens)


def _one_then_zero(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    del key
    return (jnp.arange(shape[0]) < shape[0] // 2).astype(dtype)


def _mean_of(
    names: list[str], x: Mapping[str, jax.Array], present: Mapping[str, jax.Array], width: int
) -> jax.Array:
    """The mean of V_m x_m over the present ones among `names`; 1 where none is."""
    if not names:
        return jnp.ones((), next(iter(x.values())).dtype)
    summed = sum(jnp.where(present[m], linear(x[m], width, f"value_{m}"), 0) for m in names)
    count = sum(present[m].astype(summed.dtype) for m in names)
    return jnp.where(count > 0, summed / jnp.maximum(count, 1), jnp.ones((), summed.dtype))
