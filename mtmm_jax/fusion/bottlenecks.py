"""Information bottlenecks before fusion: fewer features, or fewer bits, than the encoder gives.

A bottleneck is a Linen module `bottleneck(tokens, train=..., axis_name=...) -> Tokens` between one
encoder and the fusion (`model.bottleneck`), where modalities that say the same say it twice. Width,
mask and layout stay, so that every fusion takes what comes out; absent rows and masked tokens bring
nothing, before as after.
"""

from __future__ import annotations

import math
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from mtmm_jax.batch import Tokens
from mtmm_jax.devices.parallel import total
from mtmm_jax.layers import auxiliary
from mtmm_jax.layers.positionwise import batch_normal, column_sums
from mtmm_jax.ranges import Between, Decay, NonNegative, Size
from mtmm_jax.registry import ConfigError, check, check_fields

# The hard-concrete distribution's temperature and the ends of its stretch, as published.
TEMPERATURE, LOW, HIGH = 2 / 3, -0.1, 1.1
_LOG_VARIANCE = 15.0  # its largest size: variances stay in float32's range, and so do gradients
_EXACT = jax.lax.Precision.HIGHEST


class Gates(nn.Module):
    """y = z_m z x, z in [0, 1]^D a gate for each feature, z_m one for the whole modality.

        z = clip(s (1.1 + 0.1) - 0.1, 0, 1),  s = sigmoid((log u - log(1 - u) + a) / (2/3))

    in training, u uniform and drawn once a step; without u, and without the temperature, otherwise.
    P(z > 0) = sigmoid(a - 2/3 log(0.1 / 1.1)), and `weight` P(z_m > 0) mean_d P(z_d > 0), the share
    of features that is expected to pass, is an auxiliary loss (L0 regularisation, Louizos et al.
    2018). Costs nothing to run. It says which modalities and which features may be left out: the
    intermediates `gates` and `modality_gate` are the gates in evaluation.

    Attributes:
        weight: of the auxiliary loss.
        open: the probability that a gate is open at the start.
        where: given by the model.
    """

    weight: NonNegative = 0.1
    open: Between = 0.9
    where: str = "bottleneck"
    has_auxiliary: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_fields(self, self.where)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, tokens: Tokens, *, train: bool = False, axis_name: str | None = None
    ) -> Tokens:
        del axis_name  # all devices draw from the same key
        start = nn.initializers.constant(closed_at(self.open))
        features = self.param("features", start, (tokens.values.shape[-1],))
        modality = self.param("modality", start, ())
        if train:
            chance = jax.random.uniform(
                self.make_rng("dropout"), (features.size + 1,), minval=1e-6, maxval=1 - 1e-6
            )
            noise = jnp.log(chance) - jnp.log1p(-chance)
            gate, whole = drawn(features, noise[1:]), drawn(modality, noise[0])
            passes = passing(modality) * passing(features).mean()
            auxiliary(self, "passing", self.weight * passes, jnp.float32(1))
        else:
            gate, whole = settled(features), settled(modality)
            self.sow("intermediates", "gates", gate)
            self.sow("intermediates", "modality_gate", whole)
        return _through(tokens, tokens.values * (gate * whole).astype(tokens.values.dtype))


def drawn(log_alpha: jax.Array, noise: jax.Array) -> jax.Array:
    """A hard-concrete gate from logistic noise."""
    return _stretched(jax.nn.sigmoid((noise + log_alpha) / TEMPERATURE))


def settled(log_alpha: jax.Array) -> jax.Array:
    """The gate that evaluation uses."""
    return _stretched(jax.nn.sigmoid(log_alpha))


def passing(log_alpha: jax.Array) -> jax.Array:
    """The probability that a drawn gate is above 0."""
    return jax.nn.sigmoid(log_alpha - TEMPERATURE * math.log(-LOW / HIGH))


def closed_at(probability: float) -> float:
    """The log alpha at which `passing` is that probability."""
    return math.log(probability / (1 - probability)) + TEMPERATURE * math.log(-LOW / HIGH)


def _stretched(s: jax.Array) -> jax.Array:
    return jnp.clip(s * (HIGH - LOW) + LOW, 0.0, 1.0)


class PCA(nn.Module):
    """y = m + V V^T (x - m): the k directions in which the training tokens vary most, and no more.

    Mean and covariance are running averages over the unmasked tokens of all devices, in the batch
    statistics; V are the k leading eigenvectors, through which no gradient goes. Nothing is learned
    and nothing is lost but what varies least: the plain measure of how many features a modality
    needs. Costs an eigendecomposition of width D in each pass, D^3: for widths up to some hundreds.

    Attributes:
        k: directions that are left.
        momentum: of the running averages.
        where: given by the model.
    """

    k: Size
    momentum: Decay = 0.99
    where: str = "bottleneck"

    def __post_init__(self) -> None:
        check_fields(self, self.where)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, tokens: Tokens, *, train: bool = False, axis_name: str | None = None
    ) -> Tokens:
        width = tokens.values.shape[-1]
        _check_size(self.k, width, self.where)
        # Sums that begin at 0 and are divided by `seen`: no start value is ever averaged in.
        seen = self.variable("batch_stats", "seen", jnp.zeros, ())
        first = self.variable("batch_stats", "first", jnp.zeros, (width,))
        second = self.variable("batch_stats", "second", jnp.zeros, (width, width))
        if train and not self.is_initializing():
            x = jax.lax.stop_gradient(tokens.values).astype(jnp.float32)
            flat = jnp.where(tokens.mask[..., None], x, 0.0).reshape(-1, width)
            count = total(tokens.mask.sum().astype(jnp.float32), axis_name)
            mean = total(column_sums(flat), axis_name) / jnp.maximum(count, 1.0)
            square = total(jnp.matmul(flat.T, flat, precision=_EXACT), axis_name)
            step = jnp.where(count > 0, 1.0 - self.momentum, 0.0)
            seen.value += step * (1.0 - seen.value)
            first.value += step * (mean - first.value)
            second.value += step * (square / jnp.maximum(count, 1.0) - second.value)
        share = jnp.maximum(seen.value, 1e-6)
        mean = first.value / share
        covariance = second.value / share - jnp.outer(mean, mean)
        _, vectors = jnp.linalg.eigh(covariance)  # in ascending order
        kept = jax.lax.stop_gradient(vectors[:, width - self.k :])
        centred = tokens.values.astype(jnp.float32) - mean
        y = mean + (centred @ kept) @ kept.T
        return _through(tokens, y.astype(tokens.values.dtype))


class Information(nn.Module):
    """z = mu(x) + sigma(x) e,  y = W z + b,  e ~ N(0, I) in k dimensions; z = mu in evaluation.

    beta KL(N(mu, sigma^2) || N(0, I)) = beta/2 sum_d (mu_d^2 + sigma_d^2 - 1 - log sigma_d^2), a
    mean over the tokens that are there, is an auxiliary loss: the variational information
    bottleneck (Alemi et al. 2017), which keeps of x what the tasks pay for, in nats. Costs three
    small matrices. For noisy or redundant modalities, and little data; a beta too large closes it
    altogether.

    Attributes:
        k: dimensions of z.
        beta: weight of the auxiliary loss.
        where: given by the model.
    """

    k: Size
    beta: NonNegative = 1e-3
    where: str = "bottleneck"
    has_auxiliary: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_fields(self, self.where)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, tokens: Tokens, *, train: bool = False, axis_name: str | None = None
    ) -> Tokens:
        width, dtype = tokens.values.shape[-1], tokens.values.dtype
        _check_size(self.k, width, self.where)
        belief = nn.Dense(2 * self.k, dtype=jnp.float32, name="belief")(tokens.values)
        mean, log_variance = jnp.split(belief, 2, axis=-1)
        log_variance = jnp.clip(log_variance, -_LOG_VARIANCE, _LOG_VARIANCE)
        z = mean
        if train:
            nats = jnp.where(tokens.mask, divergence(mean, log_variance), 0.0).sum()
            auxiliary(self, "kl", self.beta * nats, tokens.mask.sum().astype(jnp.float32))
            noise = batch_normal(self.make_rng("dropout"), mean.shape, axis_name)
            z = mean + jnp.exp(0.5 * log_variance) * noise
        return _through(tokens, nn.Dense(width, dtype=dtype, name="out")(z.astype(dtype)))


def divergence(mean: jax.Array, log_variance: jax.Array) -> jax.Array:
    """KL(N(mean, variance) || N(0, I)) over the last axis, in nats."""
    return 0.5 * (jnp.square(mean) + jnp.exp(log_variance) - 1 - log_variance).sum(-1)


class Linear(nn.Module):
    """y = U W x, W to k dimensions and U back: the plain control of the others.

    Attributes:
        k: dimensions in between.
        where: given by the model.
    """

    k: Size
    where: str = "bottleneck"

    @nn.compact
    def __call__(
        self, tokens: Tokens, *, train: bool = False, axis_name: str | None = None
    ) -> Tokens:
        del train, axis_name
        width, dtype = tokens.values.shape[-1], tokens.values.dtype
        _check_size(self.k, width, self.where)
        z = nn.Dense(self.k, dtype=dtype, name="into")(tokens.values)
        return _through(tokens, nn.Dense(width, dtype=dtype, name="out")(z))


def _through(tokens: Tokens, values: jax.Array) -> Tokens:
    """Other values for the same tokens, 0 for those that are masked."""
    return tokens.replace_values(jnp.where(tokens.mask[..., None], values, 0))


def _check_size(k: int, width: int, where: str) -> None:
    check(k, Size, f"{where}.k")
    if k > width:
        raise ConfigError(f"{where}.k: {k!r}; choose from 1 to {width}, the tokens' width")


BOTTLENECKS = {"gates": Gates, "pca": PCA, "information": Information, "linear": Linear}
