"""Alignment, a step of its own before fusion: every modality's tokens at common positions in time
or space. (`alignment_losses` pull two modalities' pooled features together.)

`align(tokens, train=..., axis_name=...)` takes and gives a dict of `Tokens`. Afterwards tokens of
the same index stand at the same position. An absent modality stays absent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from mtmm_jax.batch import Span, Tokens
from mtmm_jax.fusion.alignment_losses import cca_loss as cca_loss
from mtmm_jax.fusion.alignment_losses import contrastive_loss as contrastive_loss
from mtmm_jax.fusion.alignment_losses import kl_loss as kl_loss
from mtmm_jax.fusion.transformer import check_heads
from mtmm_jax.layers import cells
from mtmm_jax.layers.attention import masked_softmax
from mtmm_jax.layers.latents import Latents
from mtmm_jax.ranges import Blocks, Positive, Size
from mtmm_jax.registry import ConfigError, check, choose

WHERE = "model.align"


class Places(NamedTuple):
    """Positions of aligned tokens: `at[B, N, P]`, `mask[B, N]` and the span's shape."""

    at: jax.Array
    mask: jax.Array
    grid: tuple[int, ...]
    stride: tuple[float, ...]

    def tokens(self, values: jax.Array, part: Tokens, name: str) -> Tokens:
        """A modality's tokens there, where it is present."""
        mask = self.mask & part.present[:, None]
        span = Span(name, self.mask.shape[1], self.grid, self.stride)
        return Tokens(values.astype(part.values.dtype), mask, self.at, (span,))


def _positions(tokens: Mapping[str, Tokens]) -> dict[str, jax.Array]:
    """Every modality's positions, in float32; of one kind, or a `ConfigError`."""
    found = {}
    for name, part in sorted(tokens.items()):
        if part.positions is None:
            known = [n for n, t in sorted(tokens.items()) if t.positions is not None]
            raise ConfigError(
                f"{WHERE}: the tokens of {name!r} have no positions to align by; those with "
                f"positions: {', '.join(known) or 'none'}"
            )
        found[name] = part.positions.astype(jnp.float32)
    first = next(iter(found))
    for name, at in found.items():
        if at.shape[-1] != found[first].shape[-1]:
            raise ConfigError(
                f"{WHERE}: positions of {name!r} have {at.shape[-1]} coordinates, those of "
                f"{first!r} {found[first].shape[-1]}; time aligns with time, space with space"
            )
    return found


def _offset(module: nn.Module, positions: dict[str, jax.Array], fixed: str) -> dict[str, jax.Array]:
    """p_m + o_m, with a learned offset of each clock but the one that is right by definition."""

    def shifted(name: str, at: jax.Array) -> jax.Array:
        if name == fixed:
            return at
        return at + module.param(f"offset_{name}", nn.initializers.zeros, at.shape[-1:])

    return {name: shifted(name, at) for name, at in positions.items()}


def _evenly(
    tokens: Mapping[str, Tokens], positions: Mapping[str, jax.Array], grid: tuple[int, ...]
) -> jax.Array:
    """`[B, prod(grid), P]`: cells' centres in the box around all unmasked positions of a row."""
    masks = jnp.concatenate([tokens[name].mask for name in positions], axis=1)[..., None]
    every = jnp.concatenate(list(positions.values()), axis=1)
    anyone = masks.any(1, keepdims=True)
    low = jnp.where(anyone, jnp.where(masks, every, jnp.inf).min(1, keepdims=True), 0.0)
    high = jnp.where(anyone, jnp.where(masks, every, -jnp.inf).max(1, keepdims=True), 0.0)
    return low + (high - low) * cells(grid, [1.0 / n for n in grid])


def _places(
    tokens: Mapping[str, Tokens], positions: Mapping[str, jax.Array], reference: str | int
) -> Places:
    """The common positions: the reference's own; where it is absent, or a number, evenly spaced."""
    here = jnp.stack([part.present for part in tokens.values()]).any(0)[:, None]
    coordinates = next(iter(positions.values())).shape[-1]
    if isinstance(reference, int):
        grid = (reference,) * coordinates
        at = _evenly(tokens, positions, grid)
        return Places(at, jnp.broadcast_to(here, at.shape[:2]), grid, (1.0,) * coordinates)
    part, own = tokens[reference], positions[reference]
    count = own.shape[1]
    span = part.layout[0] if len(part.layout) == 1 else Span("", count, (count,), (1.0,))
    grid = (count,) if coordinates == 1 else span.grid
    if len(grid) != coordinates:
        raise ConfigError(
            f"{WHERE}.reference: {reference!r} has {coordinates} coordinates on a grid of "
            f"{span.grid}, which cannot be laid out anew where it is absent; name another modality"
        )
    present = part.present[:, None]
    at = jnp.where(present[..., None], own, _evenly(tokens, positions, grid))
    return Places(at, jnp.where(present, part.mask, here), span.grid, span.stride)


def _squares(places: Places, at: jax.Array, part: Tokens, kernel: Positive | None) -> jax.Array:
    """`[B, N, M]`: squared distances of the places from a modality's tokens, in kernel widths."""
    stride = (part.layout[0].stride if len(part.layout) == 1 else ())[: at.shape[-1]]
    stride = (*stride, *(1.0,) * (at.shape[-1] - len(stride)))
    widths = [kernel or 0.5 * step for step in stride]
    difference = (places.at[:, :, None] - at[:, None]) / jnp.asarray(widths, jnp.float32)
    return jnp.square(difference).sum(-1)


def _check_kernel(kernel: Positive | None) -> None:
    if kernel is not None and not kernel > 0:
        raise ConfigError(f"{WHERE}.kernel: {kernel!r} is neither None nor a width above 0")


class Resample(nn.Module):
    """y_i = sum_j w_ij x_j,  w_ij = softmax_j(-|t_i - p_j - o|^2 / (2 s^2)) over unmasked j.

    Kernel regression (Nadaraya 1964, Watson 1964) at the common positions t; where t lies beyond a
    modality's own positions it takes the nearest. Nothing is learned but the clock offsets o, so
    it suits sensors whose values mean the same at any rate. The cost is points x tokens.

    Attributes:
        reference: the modality whose positions are common; its own tokens stay as they are. Where
            it is absent, as many points are spread evenly over what the others cover. Or a number:
            so many points, a coordinate, over what all of them cover in that row.
        kernel: s, in the units of positions; None: half a modality's own stride.
        offset: whether each modality's clock is shifted by a learned o; that of the reference, or
            of the alphabetically first modality, is right by definition.
    """

    reference: str | Size
    kernel: Positive | None = None
    offset: bool = False

    @nn.compact
    def __call__(
        self, tokens: Mapping[str, Tokens], *, train: bool = False, axis_name: str | None = None
    ) -> dict[str, Tokens]:
        del train, axis_name
        _check_kernel(self.kernel)
        check(self.reference, str | Size, f"{WHERE}.reference")
        if isinstance(self.reference, str):
            choose(self.reference, tokens, f"{WHERE}.reference", "modality (or number of points)")
        positions = _positions(tokens)
        fixed = self.reference if isinstance(self.reference, str) else min(tokens)
        if self.offset:
            positions = _offset(self, positions, fixed)
        places = _places(tokens, positions, self.reference)
        aligned = {}
        for name, at in positions.items():
            part = tokens[name]
            if name == self.reference:
                aligned[name] = places.tokens(part.values, part, name)
                continue
            squares = _squares(places, at, part, self.kernel)
            weights = masked_softmax(-0.5 * squares, part.mask[:, None])
            self.sow("intermediates", f"weights_{name}", weights)
            values = jnp.einsum("bnm,bmd->bnd", weights, part.values.astype(jnp.float32))
            aligned[name] = places.tokens(values, part, name)
        return aligned


class AlignAttention(nn.Module):
    """y_i = sum_j a_ij V x_j,  a_ij = softmax_j(q_i k_j / sqrt(d) - g_h |t_i - p_j - o|^2 / 2 s^2).

    Cross-attention from the reference's tokens, at t, to each other modality's, at p, with a
    relative bias that falls with the difference of positions and is learned for each head: g_h
    starts at 1, as `Resample`'s kernel, and content may overrule it where clocks are uneven. The
    cost is that of attention between the two lengths. Needs more data than `Resample`.

    Attributes:
        reference: the modality that asks, and whose tokens stay as they are. Where it is absent, a
            learned query asks at points spread evenly over what the others cover.
        heads: must divide the width of the other modalities' tokens, which they keep.
        kernel: s, in the units of positions; None: half a modality's own stride.
        offset: whether each other modality's clock is shifted by a learned o.
    """

    reference: str
    heads: Blocks = 4
    kernel: Positive | None = None
    offset: bool = True

    @nn.compact
    def __call__(
        self, tokens: Mapping[str, Tokens], *, train: bool = False, axis_name: str | None = None
    ) -> dict[str, Tokens]:
        del train, axis_name
        choose(self.reference, tokens, f"{WHERE}.reference", "modality")
        _check_kernel(self.kernel)
        positions = _positions(tokens)
        if self.offset:
            positions = _offset(self, positions, self.reference)
        places = _places(tokens, positions, self.reference)
        own = tokens[self.reference]
        asking = own.values.astype(jnp.float32)
        if len(tokens) > 1:
            stand_in = Latents(1, asking.shape[-1], name=f"absent_{self.reference}")(len(asking))
            asking = jnp.where(own.present[:, None, None], asking, stand_in)
        aligned = {}
        for name, at in positions.items():
            part = tokens[name]
            if name == self.reference:
                aligned[name] = places.tokens(part.values, part, name)
                continue
            squares = _squares(places, at, part, self.kernel)
            aligned[name] = places.tokens(self._attend(name, asking, part, squares), part, name)
        return aligned

    def _attend(self, name: str, asking: jax.Array, part: Tokens, squares: jax.Array) -> jax.Array:
        width = part.values.shape[-1]
        check_heads(width, self.heads, f"{WHERE}.heads")

        def heads_of(x: jax.Array, role: str) -> jax.Array:
            y = nn.Dense(width, use_bias=role != "key", name=f"{role}_{name}")(x)
            return y.reshape(*x.shape[:2], self.heads, -1)

        x = part.values.astype(jnp.float32)
        query, key, value = heads_of(asking, "query"), heads_of(x, "key"), heads_of(x, "value")
        sharpness = self.param(f"sharpness_{name}", nn.initializers.zeros, (self.heads,))
        logits = jnp.einsum("bnhd,bmhd->bhnm", query, key) * (width // self.heads) ** -0.5
        logits -= 0.5 * jnp.exp(sharpness)[:, None, None] * squares[:, None]
        weights = masked_softmax(logits, part.mask[:, None, None])
        self.sow("intermediates", f"weights_{name}", weights)
        mixed = jnp.einsum("bhnm,bmhd->bnhd", weights, value).reshape(*asking.shape[:2], width)
        return nn.Dense(width, name=f"out_{name}")(mixed)


ALIGNMENTS = {"resample": Resample, "attention": AlignAttention}
