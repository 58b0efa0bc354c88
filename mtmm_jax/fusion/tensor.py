"""Fusion by outer products: every product of one feature from each modality is a feature.

Each x_m stands as [1; x_m], so that the products of fewer modalities are among them; an absent
modality is [1; 0], and just these are left.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from mtmm_jax.batch import Tokens
from mtmm_jax.fusion.pooled import PooledFusion, linear, query_first, single
from mtmm_jax.ranges import Size, SizeOrZero
from mtmm_jax.registry import ConfigError, choose

_init = nn.initializers


class TensorFusion(PooledFusion):
    """h = W vec([1; u_1] outer .. outer [1; u_M]), u_m = R_m x_m.

    The tensor fusion network, on features that are first reduced: the tensor, and W, grow as
    (reduced + 1)^M, at 16 to 83 521 numbers for the four modalities that are allowed. An absent
    modality is [1; 0].

    Paper: Zadeh et al. 2017, arXiv:1707.07250. Costs (reduced + 1)^M numbers a row, and as many
    times the width for W. Use it: for two or three modalities whose interactions are the point.
    Not: with more, or with little data (`low_rank`).

    Attributes:
        width: of the token it gives.
        reduced: the width that each modality is brought to first.
    """

    width: Size
    reduced: Size = 16

    modalities: ClassVar[tuple[int, int | None]] = (1, 4)
    keeps_layout: ClassVar[bool] = False

    @nn.compact
    def __call__(
        self, tokens: Mapping[str, Tokens], *, train: bool = False, axis_name: str | None = None
    ) -> Tokens:
        del train, axis_name
        x, present = self.features(tokens)
        z = None
        for name in x:
            u = _with_one(linear(x[name], self.reduced, f"reduce_{name}"), present[name])
            z = u if z is None else (z[:, :, None] * u[:, None]).reshape(u.shape[0], -1)
        # The constant 1 is among the products: it is the bias.
        return single(linear(z, self.width, "out", use_bias=False), tokens)


class LowRankTensor(PooledFusion):
    """h = sum_r w_r prod_m ([1; x_m] F_m[r]) + b, with F_m in R^{rank x (D_m + 1) x width}.

    Low-rank multimodal fusion: `TensorFusion` whose W is a sum of `rank` outer products, and the
    tensor is never made. An absent modality is [1; 0].

    Paper: Liu et al. 2018, arXiv:1806.00064. Costs rank matrices a modality, linear in M. Use it:
    for interactions of many modalities. Not: where one of them alone decides; products of weak
    inputs only add noise.

    Attributes:
        width: of the token it gives.
        rank: the number of outer products.
    """

    width: Size
    rank: Size = 4

    modalities: ClassVar[tuple[int, int | None]] = (1, None)
    keeps_layout: ClassVar[bool] = False

    @nn.compact
    def __call__(
        self, tokens: Mapping[str, Tokens], *, train: bool = False, axis_name: str | None = None
    ) -> Tokens:
        del train, axis_name
        x, present = self.features(tokens)
        xavier = _init.glorot_normal(in_axis=1, out_axis=2, batch_axis=0)
        product = None
        for name in x:
            u = _with_one(x[name], present[name])
            factor = self.param(f"factor_{name}", xavier, (self.rank, u.shape[-1], self.width))
            projected = jnp.einsum("bd,rdo->bro", u, factor.astype(u.dtype))
            product = projected if product is None else product * projected
        across = _init.normal((2 / (1 + self.rank)) ** 0.5)  # Xavier, of a [1, rank] matrix
        weights = self.param("weights", across, (self.rank,)).astype(product.dtype)
        bias = self.param("bias", _init.zeros, (self.width,)).astype(product.dtype)
        return single(jnp.einsum("r,bro->bo", weights, product) + bias, tokens)


FORMS = {"matrix": 2, "vector": 2, "three_way": 3}
REDUCED = {3: 16, 4: 8}  # 16^3 = 8^4


class Multiplicative(PooledFusion):
    """y = x_2^T (x_1 W + V) + x_1 U + b: x_1 makes the matrix that x_2 is multiplied by.

    Multiplicative interactions, in three forms:

        matrix     y = x_2^T (x_1 W + V) + x_1 U + b                   W in R^{D_1 x D_2 x width}
        vector     y = (x_1 W + V) * P x_2 + x_1 U + b                 W in R^{D_1 x width}
        three_way  y = x_3^T A(x_1, x_2) + B(x_1, x_2), A (to R^{D_3 x width}) and B matrix forms

    Written out, matrix and three_way are the sum of the linear maps of all products of x's; so it
    is with four modalities, and with one: y = x_1 U + b. An absent x is 0 and the constants stay:
    what is left is the same form of the others.

    Paper: Jayakumar et al., ICLR 2020. Costs W: the product of all the D_m and the width but in the
    vector form, so that three and four are reduced first. Use it: for conditioning one input on
    another. Not: with wide features in the matrix form; take `form` vector.

    Attributes:
        width: of the token it gives.
        form: of the above; "auto": all products, whatever the number of modalities.
        query: the modality that is x_1; None: the first of the alphabet. The others follow by name.
        reduced: the width that each modality is brought to first; 0 to leave it; None: 16 for three
            modalities, whose W would have 268M weights at a width of 128; 8 for four, whose W is
            then as large as that of three; 0 for fewer.
    """

    width: Size
    form: str = "auto"
    query: str | None = None
    reduced: SizeOrZero | None = None

    modalities: ClassVar[tuple[int, int | None]] = (1, 4)
    keeps_layout: ClassVar[bool] = False

    @nn.compact
    def __call__(
        self, tokens: Mapping[str, Tokens], *, train: bool = False, axis_name: str | None = None
    ) -> Tokens:
        del train, axis_name
        x, present = self.features(tokens)
        form = choose(self.form, ("auto", *FORMS), "model.fusion.form", "form")
        if form != "auto" and FORMS[form] != len(x):
            raise ConfigError(
                f"model.fusion.form: {form!r} takes {FORMS[form]} modalities, not {len(x)}: "
                f"{', '.join(x)}; choices: "
                f"{', '.join(['auto', *(f for f in FORMS if FORMS[f] == len(x))])}"
            )
        names = query_first(x, self.query)
        default = REDUCED.get(len(names), 0)
        if reduced := default if self.reduced is None else self.reduced:
            x = {name: linear(x[name], reduced, f"reduce_{name}") for name in names}
        if form == "vector":
            return single(self._vector(names, x, present), tokens)
        x = {name: jnp.where(present[name], x[name], 0) for name in names}
        bias = self.param("bias", _init.zeros, (self.width,))
        y = bias.astype(x[names[0]].dtype)
        for order in range(1, len(names) + 1):
            for group in itertools.combinations(names, order):
                y = y + self._term([x[name] for name in group], "_x_".join(group))
        return single(y, tokens)

    def _term(self, xs: list[jax.Array], name: str) -> jax.Array:
        """`[B, width]`: the weighted sums of all products of one feature from each of `xs`."""
        axes = "ijkl"[: len(xs)]
        spread = _init.lecun_normal(in_axis=tuple(range(len(xs))), out_axis=-1)
        shape = (*(x.shape[-1] for x in xs), self.width)
        weight = self.param(f"weight_{name}", spread, shape).astype(xs[0].dtype)
        spec = ",".join([f"b{axis}" for axis in axes] + [axes + "o"]) + "->bo"
        return jnp.einsum(spec, *xs, weight)

    def _vector(
        self, names: list[str], x: Mapping[str, jax.Array], present: Mapping[str, jax.Array]
    ) -> jax.Array:
        first, second = names
        one = jnp.where(present[first], x[first], 0)
        # V and b are the biases of the two maps of x_1, which stay where x_1 is absent.
        scale = linear(one, self.width, f"scale_{first}", bias_init=_init.ones)
        shift = linear(one, self.width, f"shift_{first}")
        values = linear(x[second], self.width, f"value_{second}", use_bias=False)
        self.sow("intermediates", "scale", scale)
        return scale * jnp.where(present[second], values, 0) + shift


def _with_one(x: jax.Array, present: jax.Array) -> jax.Array:
    """[1; x], or [1; 0] where absent."""
    return jnp.concatenate([jnp.ones_like(x[:, :1]), jnp.where(present, x, 0)], axis=-1)
