"""Mel-cepstral distortion: how far two sounds are apart in the shape of their spectra, in dB."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from mtmm_jax.layers.alignment import warped_distance

_DECIBELS = 10.0 * 2.0**0.5 / np.log(10.0)


def cepstrum(log_mel: jax.Array, order: int = 13) -> jax.Array:
    """`[..., mels] -> [..., order]`: c_1 .. c_order of log|H| = sum_m c_m cos(m w); no loudness.

    c_m = 2/K sum_k log|H_k| cos(pi m (k + 1/2) / K), and log|H| is half the log power.
    """
    bands = log_mel.shape[-1]
    at = np.arange(1, order + 1)[None] * (np.arange(bands)[:, None] + 0.5) * np.pi / bands
    return log_mel @ (np.cos(at) / bands).astype(np.float32)


def distortions(a: jax.Array, b: jax.Array) -> jax.Array:
    """10 sqrt(2 sum_m (c_m - c'_m)^2) / ln 10 of cepstra, over the last axis."""
    return _DECIBELS * jnp.sqrt(jnp.square(a - b).sum(-1))


def distortion(
    guess: jax.Array, truth: jax.Array, guess_frames: jax.Array, frames: jax.Array, *, warp: bool
) -> jax.Array:
    """`[B]` dB between log-mel spectra `[B, T, mels]`.

    Args:
        guess, truth: the spectra.
        guess_frames, frames: `[B]`, how many frames of each there are.
        warp: along the cheapest alignment; else frame by frame, over the frames of the truth.
    """
    a, b = cepstrum(guess), cepstrum(truth)
    if not warp:
        heard = jnp.arange(b.shape[1]) < frames[:, None]
        each = jnp.where(heard, distortions(a, b), 0.0)
        return each.sum(1) / jnp.maximum(frames, 1).astype(each.dtype)
    # Pairwise without a [B, T, T, order] array.
    square = jnp.square(a).sum(-1)[:, :, None] + jnp.square(b).sum(-1)[:, None]
    square = square - 2 * jnp.einsum("bnk,bmk->bnm", a, b)
    cost = _DECIBELS * jnp.sqrt(jnp.maximum(square, 0.0))
    return warped_distance(cost, guess_frames, frames)
