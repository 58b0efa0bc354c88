"""Fusion by experts: the modalities' beliefs multiplied, or shared networks chosen by a router."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from mtmm_jax.batch import Tokens, check_tokens
from mtmm_jax.devices.parallel import total
from mtmm_jax.fusion.pooled import PooledFusion, linear, single
from mtmm_jax.layers import LayerNorm, auxiliary, gelu
from mtmm_jax.layers.positionwise import batch_normal
from mtmm_jax.ranges import Blocks, NonNegative, Size
from mtmm_jax.registry import ConfigError, check_fields, choose

_LOG_VARIANCE = 15.0  # its largest size: precisions stay in float32's range, and so do gradients


class ProductOfExperts(PooledFusion):
    """mu = sum_m mu_m T_m / sum_m T_m, T_m = 1 / var_m, the prior N(0, 1) among them (mu 0, T 1).

    The joint posterior of the MVAE: each modality says what it believes and how surely, channel by
    channel. An absent one has T = 0, so that every subset is a posterior and the empty one the
    prior. Gives mu or, in training, a draw mu + sd * noise.

    Paper: Wu and Goodman 2018, arXiv:1802.05335. Costs two matrices a modality. Use it: for many
    patterns of missing modalities. Not: where modalities only make sense together (a question and
    its picture); multiply features instead.

    Attributes:
        width: of the token it gives.
        sample: whether training sees draws.
        kl: weight of the auxiliary loss KL(N(mu, 1 / sum T) || N(0, 1)), summed over channels,
            mean over the rows where anything is present. 0 for none.
    """

    width: Size
    sample: bool = True
    kl: NonNegative = 1e-3

    modalities: ClassVar[tuple[int, int | None]] = (1, None)
    keeps_layout: ClassVar[bool] = False
    has_auxiliary: ClassVar[bool] = True

    @nn.compact
    def __call__(
        self, tokens: Mapping[str, Tokens], *, train: bool = False, axis_name: str | None = None
    ) -> Tokens:
        x, present = self.features(tokens)
        means, precisions = [], []
        for name in x:
            belief = linear(x[name], 2 * self.width, f"expert_{name}").astype(jnp.float32)
            mean, log_variance = jnp.split(belief, 2, axis=-1)
            log_variance = jnp.clip(log_variance, -_LOG_VARIANCE, _LOG_VARIANCE)
            means.append(mean)
            precisions.append(jnp.where(present[name], jnp.exp(-log_variance), 0))
        means, precisions = jnp.stack(means, axis=1), jnp.stack(precisions, axis=1)
        mean, variance = product_of_normals(means, precisions)
        self.sow("intermediates", "precisions", precisions)
        self.sow("intermediates", "mean", mean)
        self.sow("intermediates", "variance", variance)
        if train and self.kl:
            rows = jnp.concatenate(list(present.values()), axis=-1).any(-1)
            divergence = 0.5 * (jnp.square(mean) + variance - 1 - jnp.log(variance)).sum(-1)
            summed = jnp.where(rows, divergence, 0).sum()
            auxiliary(self, "kl", self.kl * summed, rows.sum().astype(jnp.float32))
        if train and self.sample:
            noise = batch_normal(self.make_rng("dropout"), mean.shape, axis_name)
            mean = mean + jnp.sqrt(variance) * noise
        return single(mean.astype(next(iter(x.values())).dtype), tokens)


def product_of_normals(means: jax.Array, precisions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and variance `[B, D]` of N(0, 1) prod_m N(mu_m, 1 / T_m), of `[B, M, D]`; T may be 0."""
    variance = 1 / (1 + precisions.sum(1))
    return (means * precisions).sum(1) * variance, variance


class MixtureOfExperts(PooledFusion):
    """y = x + sum_e g_e E_e(LN x), e the top k experts: a router sends each x to k of the networks.

    Sparse mixture of experts (Shazeer et al. 2017; Fedus et al. 2022, arXiv:2101.03961), shared by
    all modalities as in LIMoE (Mustafa et al. 2022). Routed by modality, x_m = W_m mean(x_m), and
    the token it gives is the mean of the present y_m; routed by token, every token is an x of its
    own and the layout stays. See `RoutedExperts` for gates, cost and the auxiliary loss.

    Paper: Shazeer et al. 2017, arXiv:1701.06538; Mustafa et al. 2022, arXiv:2206.02770. Costs all E
    experts on every row, not k (`RoutedExperts`). Use it: for many modalities or tasks that one
    network serves badly. Not: with few rows; most experts learn nothing.

    Attributes:
        width: of the tokens it gives.
        route: what is routed, "modality" or "token".
        experts, k, expansion, balance: of `RoutedExperts`.
    """

    width: Size
    route: str = "modality"
    experts: Blocks = 4
    k: Size = 2
    expansion: Size = 2
    balance: NonNegative = 0.01

    modalities: ClassVar[tuple[int, int | None]] = (1, None)
    keeps_layout: ClassVar[bool] = False  # the default route's; routed by token, it is kept
    has_auxiliary: ClassVar[bool] = True

    @nn.compact
    def __call__(
        self, tokens: Mapping[str, Tokens], *, train: bool = False, axis_name: str | None = None
    ) -> Tokens:
        choose(self.route, ("modality", "token"), "model.fusion.route", "route")
        check_tokens(tokens, "model.fusion")
        if self.route == "token":
            routed = Tokens.join(
                part.replace_values(linear(part.values, self.width, f"project_{name}"))
                for name, part in sorted(tokens.items())
            )
        else:
            x, present = self.features(tokens)
            parts = [linear(x[name], self.width, f"project_{name}") for name in x]
            mask = jnp.concatenate(list(present.values()), axis=-1)
            routed = Tokens(jnp.stack(parts, axis=1), mask)
        layer = RoutedExperts(self.experts, self.k, self.expansion, self.balance, name="routed")
        normed = LayerNorm(name="norm")(routed.values)
        y = routed.values + layer(normed, routed.mask, train=train, axis_name=axis_name)
        y = routed.replace_values(jnp.where(routed.mask[..., None], y, 0))
        return y if self.route == "token" else single(y.mean(), tokens)


class RoutedExperts(nn.Module):
    """sum over the top k experts e of g_e E_e(x), on `x[B, N, D]` where `mask[B, N]`, else 0.

    p = softmax(R x); for k = 1 the gate g is p of the chosen one (Fedus et al. 2022), for more the
    p of the chosen ones over their sum (Shazeer et al. 2017). Every expert, a network of one
    hidden layer, runs on every x and the gates of those not chosen are 0: exact, no x is dropped
    for want of room and rows do not meet, but the cost is that of all experts, not of k. In
    training the auxiliary loss `balance_loss` is added.

    Attributes:
        experts: how many there are.
        k: how many each x is sent to.
        expansion: of the experts' hidden layer.
        balance: weight of the auxiliary loss; 0 for none.
    """

    experts: Blocks = 4
    k: Size = 2
    expansion: Size = 2
    balance: NonNegative = 0.01

    def __post_init__(self) -> None:
        check_fields(self, "model.fusion")
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        mask: jax.Array,
        *,
        train: bool = False,
        axis_name: str | None = None,
    ) -> jax.Array:
        if self.k > self.experts:
            raise ConfigError(
                f"model.fusion.k: {self.k}: choose from 1 to {self.experts}, the number of experts"
            )
        width, hidden = x.shape[-1], self.expansion * x.shape[-1]
        router = nn.Dense(self.experts, use_bias=False, dtype=jnp.float32, name="router")
        probabilities = nn.softmax(router(x.astype(jnp.float32)))
        gates, chosen = top_k_gates(probabilities, self.k)
        gates = jnp.where(mask[..., None], gates, 0)
        loss, count, use = balance_loss(probabilities, chosen, mask, axis_name)
        self.sow("intermediates", "gates", gates)
        self.sow("intermediates", "expert_use", use)
        if train and self.balance:
            auxiliary(self, "balance", self.balance * loss, count)

        def experts(name: str, *shape: int) -> jax.Array:
            spread = nn.initializers.lecun_normal(in_axis=1, out_axis=2, batch_axis=0)
            init = spread if len(shape) == 2 else nn.initializers.zeros
            return self.param(name, init, (self.experts, *shape)).astype(x.dtype)

        h = jnp.einsum("bnd,edh->bneh", x, experts("up", width, hidden))
        h = gelu(h + experts("up_bias", hidden))
        gates = gates.astype(x.dtype)
        y = jnp.einsum("bneh,ehd->bnd", h * gates[..., None], experts("down", hidden, width))
        return y + jnp.einsum("bne,ed->bnd", gates, experts("down_bias", width))


def top_k_gates(probabilities: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """Gates and whether chosen, `[..., E]`: the k largest, over their sum if k > 1."""
    experts = probabilities.shape[-1]
    _, index = jax.lax.top_k(probabilities, k)
    chosen = (index[..., None] == jnp.arange(experts)).any(-2)
    gates = jnp.where(chosen, probabilities, 0)
    return (gates / gates.sum(-1, keepdims=True) if k > 1 else gates), chosen


def balance_loss(
    probabilities: jax.Array, chosen: jax.Array, mask: jax.Array, axis_name: str | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """E sum_e f_e P_e (Fedus et al. 2022), as a sum over this device's rows and their number; f.

    f_e is the share of expert e in all choices, P_e the mean of its p, both over the unmasked of
    all devices; 1 when both are even. f has no gradient, so that the loss is a mean over rows once
    f is known: it adds over devices, but not over microbatches, which have their own f.
    """
    keep = mask[..., None].astype(jnp.float32)
    axes = tuple(range(mask.ndim))
    choices = total((keep * chosen.astype(jnp.float32)).sum(axes), axis_name)
    use = choices / jnp.maximum(choices.sum(), 1)
    loss = probabilities.shape[-1] * (use * (keep * probabilities).sum(axes)).sum()
    return loss, keep.sum(), use
