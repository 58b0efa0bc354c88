"""Transforms of tables `[columns]` and series `[T, channels]`; noise, for anything of floats."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

import numpy as np

from mtmm_jax.chance import stretches
from mtmm_jax.data.transforms import augment
from mtmm_jax.data.transforms.stage import Form, Stage
from mtmm_jax.ranges import NonNegative, Real, Size
from mtmm_jax.registry import ConfigError, check


def standardise(form: Form, where: str) -> Stage:
    """To mean 0 and standard deviation 1 of each column or channel over the train split.

    What is constant there becomes 0; not-a-number is left out of the statistics, then 0 too.
    """
    if form.masked:
        raise ConfigError(f"{where}: padding would enter the statistics: put it before fit")

    def fit(values: Sequence[np.ndarray]) -> str:
        rows = np.concatenate([np.atleast_2d(value) for value in values]).astype(np.float64)
        known = np.isfinite(rows)
        count = np.maximum(known.sum(0), 1)
        mean = np.where(known, rows, 0).sum(0) / count
        std = np.sqrt((np.where(known, rows - mean, 0) ** 2).sum(0) / count)
        return json.dumps({"mean": mean.tolist(), "std": std.tolist()})

    def load(state: str) -> Stage:
        kept = json.loads(state)
        mean, std = np.array(kept["mean"]), np.array(kept["std"])
        scale = np.where(std > 1e-6 * np.abs(mean), 1 / np.maximum(std, 1e-30), 0)
        mean, scale = mean.astype(np.float32), scale.astype(np.float32)

        def apply(x: np.ndarray, u: None) -> np.ndarray:
            return np.where(np.isfinite(x), (x - mean) * scale, np.float32(0))

        return Stage(form, apply, load=load)

    return Stage(form, None, fit=fit, load=load)


def clip(form: Form, where: str, low: Real = -5.0, high: Real = 5.0) -> Stage:
    """To `low`..`high`."""
    if low >= high:
        raise ConfigError(f"{where}: low {low} is not below high {high}")
    return Stage(form, lambda x, u: np.clip(x, np.float32(low), np.float32(high)))


def fit_steps(form: Form, where: str, steps: Size) -> Stage:
    """The first `steps` of a series, zeros after its end, and a mask of which are real."""
    check(steps, Size, f"{where}: length")

    def apply(series: np.ndarray, u: None) -> tuple[np.ndarray, np.ndarray]:
        out = np.zeros((steps, *series.shape[1:]), np.float32)
        out[: len(series)] = series[:steps]
        return out, np.arange(steps) < len(series)

    out = dataclasses.replace(form, shape=(steps, *form.shape[1:]), masked=True)
    return Stage(out, apply, each=True, masks=True)


def noise(form: Form, where: str, level: NonNegative = 0.01) -> Stage:
    """White noise of a standard deviation up to `level`, on half of the examples."""
    if form.dtype != "float32":
        raise ConfigError(f"{where}: needs floats: put it after to_float or normalize")

    def apply(x: np.ndarray, u: np.ndarray) -> np.ndarray:
        out = augment.noise(x, u[:, :1], stretches(u[:, 1], x.shape[1:]), level)
        return out if form.low is None else np.clip(out, form.low, form.high, out=out)

    return Stage(form, apply, draws=2)
