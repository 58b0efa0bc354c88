"""Bilinear fusion: products of projections, which are outer products with a weight of low rank.

With more than two modalities the product runs over all; an absent one's factor is 1, so that the
others multiply as if it did not exist.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from mtmm_jax.batch import Tokens
from mtmm_jax.fusion.pooled import PooledFusion, linear, single
from mtmm_jax.ranges import Size
from mtmm_jax.registry import ConfigError


class MLB(PooledFusion):
    """h = W prod_m relu(U_m x_m).

    Multimodal low-rank bilinear pooling, with the relu of later code for their tanh.

    Paper: Kim et al. 2017, arXiv:1610.04325. Costs one matrix a modality: the cheapest bilinear
    fusion. Use it: as the first product to try. Not: where a modality is often absent; sums lose
    less then.

    Attributes:
        width: of the token it gives.
        hidden: of the products.
    """

    width: Size
    hidden: Size = 256

    modalities: ClassVar[tuple[int, int | None]] = (1, None)
    keeps_layout: ClassVar[bool] = False

    @nn.compact
    def __call__(
        self, tokens: Mapping[str, Tokens], *, train: bool = False, axis_name: str | None = None
    ) -> Tokens:
        del train, axis_name
        x, present = self.features(tokens)
        factors = {m: nn.relu(linear(x[m], self.hidden, f"factor_{m}")) for m in x}
        return single(linear(_product(factors, present), self.width, "out"), tokens)


class MFB(PooledFusion):
    """h = W unit(signed_sqrt(z)), z_i = sum of the i-th `factor` entries of prod_m U_m x_m.

    Multimodal factorised bilinear pooling: each z_i is a bilinear form of rank `factor`, where
    MLB's have rank 1. The root and the norm tame products, whose spread is wide.

    Paper: Yu et al. 2017, arXiv:1708.01471. Costs `factor` times as much as MLB. Use it: where
    MLB's rank of 1 is too little. Not: before `mlb` has helped.

    Attributes:
        width: of the token it gives.
        hidden: of z.
        factor: the rank of each form.
    """

    width: Size
    hidden: Size = 128
    factor: Size = 5

    modalities: ClassVar[tuple[int, int | None]] = (1, None)
    keeps_layout: ClassVar[bool] = False

    @nn.compact
    def __call__(
        self, tokens: Mapping[str, Tokens], *, train: bool = False, axis_name: str | None = None
    ) -> Tokens:
        del train, axis_name
        x, present = self.features(tokens)
        factors = {m: linear(x[m], self.hidden * self.factor, f"factor_{m}") for m in x}
        z = _product(factors, present).reshape(-1, self.hidden, self.factor).sum(-1)
        return single(linear(unit(signed_sqrt(z)), self.width, "out"), tokens)


class Tucker(PooledFusion):
    """h = W sum_r prod_m A_m[r] u_m, u_m = U_m x_m in R^hidden.

    The Tucker decomposition of the full bilinear map, its core a sum of `rank` products for each
    output, as in MUTAN.

    Paper: Ben-younes et al. 2017, arXiv:1705.06676. Costs rank hidden^2 a modality. Use it: between
    `mfb` (no core: every modality has its own projection) and `block` (the core cut into chunks).
    Not: with a large `hidden`.

    Attributes:
        width: of the token it gives.
        hidden: of the u_m and of the core's output.
        rank: of each slice of the core.
    """

    width: Size
    hidden: Size = 64
    rank: Size = 10

    modalities: ClassVar[tuple[int, int | None]] = (1, None)
    keeps_layout: ClassVar[bool] = False

    @nn.compact
    def __call__(
        self, tokens: Mapping[str, Tokens], *, train: bool = False, axis_name: str | None = None
    ) -> Tokens:
        del train, axis_name
        x, present = self.features(tokens)
        factors = {}
        for name in x:
            u = linear(x[name], self.hidden, f"project_{name}")
            factors[name] = linear(u, self.rank * self.hidden, f"core_{name}")
        z = _product(factors, present).reshape(-1, self.rank, self.hidden).sum(1)
        return single(linear(z, self.width, "out"), tokens)


class Block(PooledFusion):
    """h = W [c_1; ..; c_C], c_i = unit(signed_sqrt(sum_r prod_m A_m[i, r] u_m[i])), u_m = U_m x_m.

    Block-superdiagonal fusion (in the paper of two modalities): the u_m are cut into C chunks, and
    only chunks at the same place meet, each in a core of its own of rank `rank`; every chunk is
    normed by itself.

    Paper: Ben-younes et al. 2019, arXiv:1902.00038. Costs rank hidden^2 / C a modality. Use it: as
    the most expressive of the bilinear fusions for its parameters. Not: with few rows a class.

    Attributes:
        width: of the token it gives.
        hidden: of the u_m; a multiple of `chunks`.
        chunks: C.
        rank: of each slice of a chunk's core.
    """

    width: Size
    hidden: Size = 320
    chunks: Size = 20
    rank: Size = 15

    modalities: ClassVar[tuple[int, int | None]] = (1, None)
    keeps_layout: ClassVar[bool] = False

    @nn.compact
    def __call__(
        self, tokens: Mapping[str, Tokens], *, train: bool = False, axis_name: str | None = None
    ) -> Tokens:
        del train, axis_name
        x, present = self.features(tokens)
        if self.hidden % self.chunks:
            raise ConfigError(
                f"model.fusion.hidden: {self.hidden} does not divide over {self.chunks} chunks; "
                f"choose a multiple of model.fusion.chunks"
            )
        size = self.hidden // self.chunks
        spread = nn.initializers.lecun_normal(in_axis=1, out_axis=2, batch_axis=0)
        shape = (self.chunks, size, self.rank * size)
        factors = {}
        for name in x:
            u = linear(x[name], self.hidden, f"project_{name}").reshape(-1, self.chunks, size)
            core = self.param(f"core_{name}", spread, shape).astype(u.dtype)
            bias = self.param(f"core_bias_{name}", nn.initializers.zeros, (shape[0], shape[2]))
            factors[name] = jnp.einsum("bcs,csk->bck", u, core) + bias.astype(u.dtype)
        z = _product(factors, {m: present[m][..., None] for m in x})
        z = z.reshape(-1, self.chunks, self.rank, size).sum(2)
        z = unit(signed_sqrt(z)).reshape(-1, self.hidden)
        return single(linear(z, self.width, "out"), tokens)


def _product(factors: Mapping[str, jax.Array], present: Mapping[str, jax.Array]) -> jax.Array:
    """prod_m f_m over the present m."""
    result = None
    for name, factor in factors.items():
        factor = jnp.where(present[name], factor, jnp.ones((), factor.dtype))
        result = factor if result is None else result * factor
    return result


def signed_sqrt(x: jax.Array, epsilon: float = 1e-6) -> jax.Array:
    """sign(x) sqrt(|x|), as x / sqrt(|x| + epsilon): its slope at 0 is 1000, not infinite."""
    return x * jax.lax.rsqrt(jnp.abs(x) + epsilon)


def unit(x: jax.Array, epsilon: float = 1e-6) -> jax.Array:
    """x / |x| over the last axis, as x / sqrt(|x|^2 + epsilon): zeros stay, with a finite slope."""
    return x * jax.lax.rsqrt(jnp.square(x).sum(-1, keepdims=True) + epsilon)
