"""Substitutes for absent modalities before fusion.

A filler is a Linen module called as `filler(seen, known, ...) -> {modality: Tokens}`: `seen` are
the tokens that fusion may read, `known` those that are there (modality dropout hides some). It
fills a modality only in rows where another one is seen. `mask`, the default of `model.missing`,
fills nothing: what is absent takes part in nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from mtmm_jax.batch import Tokens
from mtmm_jax.devices.parallel import total
from mtmm_jax.layers import auxiliary, gelu
from mtmm_jax.ranges import NonNegative, Size


def _fill(tokens: Tokens, vector: jax.Array, anyone: jax.Array) -> Tokens:
    """An absent row's tokens all become `vector [B, D]`, where `anyone` is seen at all."""
    empty = ~tokens.present & anyone
    stand_in = vector.astype(tokens.values.dtype)[:, None]
    return Tokens(
        jnp.where(empty[:, None, None], stand_in, tokens.values),
        tokens.mask | empty[:, None],
        tokens.positions,
        tokens.layout,
    )


def _anyone(tokens: Mapping[str, Tokens]) -> jax.Array:
    return jnp.stack([part.present for part in tokens.values()]).any(0)


class Zero(nn.Module):
    """Zeros, seen like any other tokens: what most published models do."""

    @nn.compact
    def __call__(
        self,
        seen: Mapping[str, Tokens],
        known: Mapping[str, Tokens],
        *,
        train: bool = False,
        axis_name: str | None = None,
    ) -> dict[str, Tokens]:
        del known, train, axis_name
        anyone = _anyone(seen)
        return {
            name: _fill(part, jnp.zeros_like(part.values[:, 0]), anyone)
            for name, part in seen.items()
        }


class Placeholder(nn.Module):
    """A learned token for each modality."""

    @nn.compact
    def __call__(
        self,
        seen: Mapping[str, Tokens],
        known: Mapping[str, Tokens],
        *,
        train: bool = False,
        axis_name: str | None = None,
    ) -> dict[str, Tokens]:
        del known, train, axis_name
        anyone = _anyone(seen)
        filled = {}
        for name, part in seen.items():
            batch, _, width = part.values.shape
            token = self.param(f"token_{name}", nn.initializers.normal(0.02), (width,))
            filled[name] = _fill(part, jnp.broadcast_to(token, (batch, width)), anyone)
        return filled


class Reconstruct(nn.Module):
    """x_m^ = g_m(mean of W_n mean(x_n) over the other n that are seen): modality translation.

    In training g learns from the rows where m is known: the squared distance between x_m^ and the
    mean of x_m, over the variance of the latter in the batch, is an auxiliary loss. The target is
    not pulled towards the guess. With modality dropout it also learns from pairs that it is asked
    for at the end.

    Attributes:
        hidden: of g's hidden layer.
        weight: of the auxiliary loss, a mean over modalities and rows.
    """

    hidden: Size = 128
    weight: NonNegative = 1.0
    has_auxiliary: ClassVar[bool] = True

    @nn.compact
    def __call__(
        self,
        seen: Mapping[str, Tokens],
        known: Mapping[str, Tokens],
        *,
        train: bool = False,
        axis_name: str | None = None,
    ) -> dict[str, Tokens]:
        names = sorted(seen)
        if len(names) == 1:
            return dict(seen)
        anyone = _anyone(seen)
        present = {name: seen[name].present[:, None] for name in names}
        dtype = seen[names[0]].values.dtype
        views = {
            n: nn.Dense(self.hidden, dtype=dtype, name=f"view_{n}")(seen[n].mean()) for n in names
        }
        filled, summed_up, count = {}, jnp.float32(0), jnp.float32(0)
        for name in names:
            others = [n for n in names if n != name]
            number = sum(present[n].astype(jnp.float32) for n in others)
            summed = sum(jnp.where(present[n], views[n], 0) for n in others)
            mixed = summed / jnp.maximum(number, 1).astype(summed.dtype)
            width = seen[name].values.shape[-1]
            guess = nn.Dense(width, dtype=dtype, name=f"to_{name}")(gelu(mixed))
            filled[name] = _fill(seen[name], guess, anyone)
            self.sow("intermediates", f"guess_{name}", guess)
            if train:
                target = jax.lax.stop_gradient(known[name].mean()).astype(jnp.float32)
                rows = (known[name].present & (number[:, 0] > 0)).astype(jnp.float32)
                summed_up += (rows * _distance(guess, target, rows, axis_name)).sum()
                count += rows.sum()
        if train:
            auxiliary(self, "reconstruction", self.weight * summed_up, count)
        return filled


def _distance(
    guess: jax.Array, target: jax.Array, rows: jax.Array, axis_name: str | None
) -> jax.Array:
    """`[B]`: the mean squared difference over the target's variance among all devices' rows."""
    number = jnp.maximum(total(rows.sum(), axis_name), 1)
    mean = total((rows[:, None] * target).sum(0), axis_name) / number
    spread = total((rows[:, None] * (target - mean) ** 2).sum(), axis_name)
    variance = spread / (number * target.shape[-1])
    return ((guess.astype(jnp.float32) - target) ** 2).mean(-1) / (variance + 1e-6)


MISSING = {"zero": Zero, "placeholder": Placeholder, "reconstruct": Reconstruct}
