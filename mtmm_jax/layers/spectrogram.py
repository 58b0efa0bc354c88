"""Waves and mel spectrograms, there and back: log-mel, its inverse, Griffin-Lim."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

FLOOR = 1e-5  # added to the power: what silence is


def mel_filters(bins: int, mels: int, rate: float) -> np.ndarray:
    """`[bins, mels]`: triangles at equal distances on the mel scale m = 2595 log10(1 + f / 700)."""
    top = 2595.0 * np.log10(1.0 + rate / 2 / 700.0)
    edges = 700.0 * (10.0 ** (np.linspace(0.0, top, mels + 2) / 2595.0) - 1.0)
    frequencies = np.linspace(0.0, rate / 2, bins)[:, None]
    rising = (frequencies - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - frequencies) / (edges[2:] - edges[1:-1])
    return np.maximum(0.0, np.minimum(rising, falling)).astype(np.float32)


def sizes(rate: float, window: float, hop: float) -> tuple[int, int, int]:
    """Samples of a window, of a hop, and of the Fourier transform."""
    size, step = round(window * rate), round(hop * rate)
    return size, step, 1 << (size - 1).bit_length()


def frame_count(samples: int, rate: float, *, window: float = 0.032, hop: float = 0.016) -> int:
    """Frames of a wave."""
    size, step, _ = sizes(rate, window, hop)
    count = 1 + (samples - size) // step
    if count < 1:
        raise ValueError(f"{samples} samples are shorter than one window of {size}")
    return count


def _hann(size: int) -> np.ndarray:
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)).astype(np.float32)


def frames(wave: jax.Array, count: int, size: int, step: int) -> jax.Array:
    """`[B, samples] -> [B, count, size]`: windows every `step` samples.

    Put together of whole blocks where size and step have a large common divisor, which costs half
    of looking up every sample.
    """
    block = math.gcd(size, step)
    pieces, stride = size // block, step // block
    if pieces > 16:
        return wave[:, np.arange(count)[:, None] * step + np.arange(size)]
    blocks = wave[:, : (count - 1) * step + size].reshape(wave.shape[0], -1, block)
    last = (count - 1) * stride + 1
    return jnp.concatenate([blocks[:, i : i + last : stride] for i in range(pieces)], axis=-1)


def log_mel(
    wave: jax.Array, rate: float, *, mels: int = 40, window: float = 0.032, hop: float = 0.016
) -> jax.Array:
    """`[B, samples] -> [B, frames, mels]`: log(1e-5 + mel power), by Hann windows and rfft."""
    size, step, length = sizes(rate, window, hop)
    count = frame_count(wave.shape[1], rate, window=window, hop=hop)
    windows = frames(wave.astype(jnp.float32), count, size, step) * _hann(size)
    spectrum = jnp.fft.rfft(windows, n=length)
    power = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
    return jnp.log(FLOOR + power @ mel_filters(length // 2 + 1, mels, rate))


# From here on NumPy: listening happens on the host.


@functools.cache
def _inverse_filters(bins: int, mels: int, rate: float) -> tuple[np.ndarray, np.ndarray]:
    filters = mel_filters(bins, mels, rate).astype(np.float64)
    return filters, filters / np.maximum(filters.sum(1, keepdims=True), 1e-8)


def power_of(mel_power: np.ndarray, bins: int, rate: float, iterations: int = 30) -> np.ndarray:
    """`[frames, mels] -> [frames, bins]`: the power spectrum whose bands they are, not negative.

    Multiplicative updates of the least squares, P <- P * (m F^T) / (P F F^T), from each bin's own
    bands' mean (Lee and Seung 2001).
    """
    filters, start = _inverse_filters(bins, mel_power.shape[1], rate)
    wanted = mel_power.astype(np.float64) @ filters.T
    power = mel_power @ start.T + 1e-10
    for _ in range(iterations):
        power *= wanted / (power @ filters @ filters.T + 1e-12)
    return power


def griffin_lim(
    log_mels: np.ndarray,
    rate: float,
    *,
    window: float = 0.032,
    hop: float = 0.016,
    iterations: int = 60,
    momentum: float = 0.99,
) -> np.ndarray:
    """`[frames, mels] -> [samples]` float32: a wave with about this log-mel spectrum.

    Phases are found by going to the wave and back (Griffin and Lim 1984), with the momentum of
    Perraudin et al. 2013; they start from a fixed random draw, so that the same frames give the
    same wave.
    """
    size, step, length = sizes(rate, window, hop)
    bins = length // 2 + 1
    loudness = np.maximum(np.exp(np.asarray(log_mels, np.float64)) - FLOOR, 0.0)
    magnitude = np.sqrt(power_of(loudness, bins, rate))
    index = np.arange(len(magnitude))[:, None] * step + np.arange(size)
    samples = int(index[-1, -1]) + 1
    hann = _hann(size).astype(np.float64)
    norm = np.maximum(np.bincount(index.ravel(), np.tile(hann**2, len(index)), samples), 1e-3)

    def wave_of(spectrum: np.ndarray) -> np.ndarray:
        frames = np.fft.irfft(spectrum, length)[:, :size] * hann
        return np.bincount(index.ravel(), frames.ravel(), samples) / norm

    turn = np.random.default_rng(0).uniform(0, 2 * np.pi, magnitude.shape)
    spectrum, before = magnitude * np.exp(1j * turn), np.zeros(magnitude.shape, complex)
    for _ in range(iterations):
        now = np.fft.rfft(wave_of(spectrum)[index] * hann, length)
        ahead = now + momentum * (now - before)
        spectrum, before = magnitude * ahead / np.maximum(np.abs(ahead), 1e-12), now
    return wave_of(spectrum).astype(np.float32)
