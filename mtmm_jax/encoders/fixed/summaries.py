"""Sounds and series -> statistics over time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from mtmm_jax.batch import Modality
from mtmm_jax.encoders.audio import HOP, WINDOW, frame_mask
from mtmm_jax.encoders.encoder import mask_of
from mtmm_jax.encoders.fixed.fixed import FixedEncoder
from mtmm_jax.layers.spectrogram import log_mel
from mtmm_jax.ranges import Positive, Size

_STATISTICS = 9  # of `over_time`


def over_time(x: jax.Array, mask: jax.Array) -> jax.Array:
    """`[B, 9 C]` of `[B, T, C]`: mean, deviation, least, most, change from step to step, the means
    of three thirds, and the slope; of the steps of `mask [B, T]`."""
    keep = mask[..., None].astype(jnp.float32)
    x = jnp.where(mask[..., None], jnp.nan_to_num(x.astype(jnp.float32)).clip(-1e6, 1e6), 0)
    count = jnp.maximum(keep.sum(1), 1)
    mean = x.sum(1) / count
    apart = (x - mean[:, None]) * keep
    std = jnp.sqrt(jnp.square(apart).sum(1) / count + 1e-12)
    some = mask.any(1)[:, None]
    least = jnp.where(some, jnp.where(keep > 0, x, jnp.inf).min(1), 0)
    most = jnp.where(some, jnp.where(keep > 0, x, -jnp.inf).max(1), 0)
    pairs = keep[:, 1:] * keep[:, :-1]
    change = (jnp.abs(x[:, 1:] - x[:, :-1]) * pairs).sum(1) / jnp.maximum(pairs.sum(1), 1)
    place = (jnp.cumsum(keep, 1) - 0.5) / count[:, None]  # 0..1 among the steps that are there
    third = jnp.floor(3 * place)
    thirds = [_mean(x, keep * (third == i).astype(jnp.float32)) for i in range(3)]
    centred = (place - 0.5) * keep
    slope = (centred * apart).sum(1) / jnp.maximum(jnp.square(centred).sum(1), 1e-3)
    return jnp.concatenate([mean, std, least, most, change, *thirds, slope], axis=1)


def _mean(x: jax.Array, keep: jax.Array) -> jax.Array:
    return (x * keep).sum(1) / jnp.maximum(keep.sum(1), 1)


class SeriesSummary(FixedEncoder):
    """Nine statistics over time of each channel (`over_time`), and the length.

    Costs one pass. Use it: for series whose level and spread decide. Not: where the order does.
    """

    @staticmethod
    def accepts(modality: Modality) -> bool:
        return (
            modality.is_a("series") and len(modality.shape) == 2 and modality.shape[1] is not None
        )

    @property
    def size(self) -> int:
        return _STATISTICS * int(self.shape[-1] or 1) + 1

    def raw(self, entry: Mapping[str, Any]) -> jax.Array:
        mask = mask_of(entry)
        length = jnp.log1p(mask.sum(1, keepdims=True).astype(jnp.float32))
        return jnp.concatenate([over_time(entry["x"], mask), length], axis=1)


class AudioSummary(FixedEncoder):
    """Nine statistics over time of each band of a log-mel spectrogram (`over_time`).

    Costs the spectrogram. Use it: for the kind of a sound. Not: for what is spoken.

    Attributes:
        rate: samples per second.
        mels: bands.
    """

    rate: Positive = 16_000.0
    mels: Size = 40

    @staticmethod
    def accepts(modality: Modality) -> bool:
        fixed = len(modality.shape) == 1 and modality.shape[0] is not None
        if not (modality.is_a("audio") and fixed and modality.rate is not None):
            return False
        return modality.shape[0] >= round(WINDOW * modality.rate)

    @property
    def size(self) -> int:
        return _STATISTICS * self.mels

    def raw(self, entry: Mapping[str, Any]) -> jax.Array:
        wave = jnp.nan_to_num(entry["x"].astype(jnp.float32)).clip(-1, 1)
        x = log_mel(wave, self.rate, mels=self.mels, window=WINDOW, hop=HOP)
        return over_time(x, frame_mask(entry, self.rate, x.shape[1]))
