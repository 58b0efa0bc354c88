"""Augmentation inside jit: the steps of `augment.py`, with numbers from JAX keys.

    augmented = augmenter({"image": "crop(4)|flip|color", "text": "token_dropout(0.1)"}, spec)
    batch = augmented(example_keys(key, epoch, batch["id"]), batch)

A key belongs to an example, not to a place in the batch: what happens to it does not depend on how
the batch is put together, nor on how many devices share it. Nothing is written where a modality is
absent or masked.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import jax
import jax.numpy as jnp

from mtmm_jax.batch import Batch, Modality, Spec
from mtmm_jax.data.pipeline.pipes import Call, bind, parse
from mtmm_jax.data.transforms import augment
from mtmm_jax.keys import fold_in_name
from mtmm_jax.ranges import Margin, NonNegative, Positive, Range, Real, Share
from mtmm_jax.registry import ConfigError, choose

Masks = Annotated[int, Range(1, 64)]


def uniform(keys: jax.Array, draws: int) -> jax.Array:
    """`[B, draws]` float32 in 0..1."""
    return jax.vmap(lambda key: jax.random.uniform(key, (draws,), jnp.float32))(keys)


def crop(keys: jax.Array, x: jax.Array, pad: Margin = 4, fill: Real = 0.0) -> jax.Array:
    """A window as large as the pictures `[B, H, W, C]`, which `pad` pixels of `fill` surround."""
    return augment.crop(x, uniform(keys, 2), pad, fill=fill)


def flip(keys: jax.Array, x: jax.Array, share: Share = 0.5) -> jax.Array:
    """Mirrors a share of the pictures left to right."""
    return augment.flip(x, uniform(keys, 1), share)


def color(
    keys: jax.Array,
    x: jax.Array,
    brightness: NonNegative = 0.2,
    contrast: NonNegative = 0.2,
    saturation: NonNegative = 0.2,
    low: Real = -1.0,
    high: Real = 1.0,
) -> jax.Array:
    """Jitters brightness, contrast and saturation of pictures whose values are in `low`..`high`."""
    u = uniform(keys, 3)
    return augment.color(x, u, brightness, contrast, saturation, low, high)


def cut_out(
    keys: jax.Array, x: jax.Array, largest: Share = 0.4, share: Share = 0.5, fill: Real = 0.0
) -> jax.Array:
    """Fills a square of up to `largest` of the shorter side in a share of the pictures."""
    return augment.cut_out(x, uniform(keys, 4), largest, share, fill)


def noise(keys: jax.Array, x: jax.Array, level: NonNegative = 0.01) -> jax.Array:
    """White noise of a standard deviation up to `level`, on half of the examples."""
    pairs = jax.vmap(jax.random.split)(keys)
    white = jax.vmap(lambda key: jax.random.normal(key, x.shape[1:], x.dtype))(pairs[:, 1])
    return augment.noise(x, uniform(pairs[:, 0], 1).astype(x.dtype), white, level)


def gain(keys: jax.Array, x: jax.Array, low: Positive = 0.5, high: Positive = 1.5) -> jax.Array:
    """Louder or softer by a factor in `low`..`high`."""
    return augment.gain(x, uniform(keys, 1).astype(x.dtype), low, high)


def spec_augment(
    keys: jax.Array,
    x: jax.Array,
    time: Share = 0.2,
    frequency: Share = 0.2,
    masks: Masks = 2,
    fill: Real = 0.0,
) -> jax.Array:
    """Fills stretches of time and of frequency (or of channels) in `[B, T, F]`."""
    return augment.spec_augment(x, uniform(keys, 4 * masks), time, frequency, masks, fill)


def token_dropout(keys: jax.Array, x: jax.Array, share: Share = 0.1) -> jax.Array:
    """Replaces a share of the tokens `[B, N]` by the unknown one; padding stays."""
    return augment.token_dropout(x, uniform(keys, math.prod(x.shape[1:])), share)


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """A row of `AUGMENTATIONS`: `apply(keys [B], x [B, ...], **options)`, and for what kinds.

    `channels` is how many there must be, if only pictures in colours will do.
    """

    apply: Callable[..., jax.Array]
    takes: tuple[str, ...]
    channels: int | None = None


AUGMENTATIONS = {
    "crop": Augmentation(crop, ("image",)),
    "flip": Augmentation(flip, ("image",)),
    "color": Augmentation(color, ("image",), channels=3),
    "cut_out": Augmentation(cut_out, ("image",)),
    "noise": Augmentation(noise, ("audio", "image", "video", "table", "series")),
    "gain": Augmentation(gain, ("audio",)),
    "spec_augment": Augmentation(spec_augment, ("series",)),
    "token_dropout": Augmentation(token_dropout, ("text",)),
}


def keep(entry: Mapping[str, Any], x: jax.Array) -> dict[str, Any]:
    """A modality with new values where it is present and not masked."""
    real = entry["present"]
    if "mask" in entry:
        real = entry["mask"] & real[:, None]
    real = real.reshape(real.shape + (1,) * (x.ndim - real.ndim))
    return {**entry, "x": jnp.where(real, x, entry["x"])}


def augmenter(
    config: Mapping[str, str], spec: Spec, where: str = "data.augment"
) -> Callable[[jax.Array, Batch], Batch]:
    """`(keys [B], batch) -> batch`, to be called inside jit.

    Args:
        config: modality -> rows of `AUGMENTATIONS` in the order of their use, "crop(4)|flip".
        spec: of the batches.
        where: the place in the config.
    """
    steps = {}
    for name, text in config.items():
        choose(name, spec.modalities, where, "modality")
        at = f"{where}.{name}"
        steps[name] = [_step(call, spec.modalities[name], at) for call in parse(text, at)]

    def apply(keys: jax.Array, batch: Batch) -> Batch:
        inputs = dict(batch["inputs"])
        for name, calls in steps.items():
            if name not in inputs:
                continue
            own = fold_in_name(keys, name)
            x = jnp.asarray(inputs[name]["x"])
            for i, call in enumerate(calls):
                x = call(_fold(own, i), x)
            inputs[name] = keep(inputs[name], x)
        return {**batch, "inputs": inputs}

    return apply


def _step(call: Call, modality: Modality, where: str) -> Callable[[Any, Any], jax.Array]:
    at = f"{where}: {call.place}"
    row = AUGMENTATIONS[choose(call.name, AUGMENTATIONS, at, "augmentation")]
    if not modality.is_a(*row.takes):
        fitting = sorted(name for name, row in AUGMENTATIONS.items() if modality.is_a(*row.takes))
        raise ConfigError(
            f"{at}: {call.name} takes {' or '.join(row.takes)}, not {modality.kind}; "
            f"choices: {', '.join(fitting)}"
        )
    if row.channels not in (None, modality.shape[-1]):
        raise ConfigError(
            f"{at}: {call.name} is for {row.channels} channels, red, green and blue; this "
            f"{modality.kind} has {modality.shape[-1]}: leave it out"
        )
    options = bind(call, row.apply, where, skip=2)
    shape = (2, *(8 if size is None else size for size in modality.shape))
    try:
        out = jax.eval_shape(
            lambda keys, x: row.apply(keys, x, **options),
            jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 2)),
            jax.ShapeDtypeStruct(shape, modality.dtype),
        )
    except (TypeError, ValueError, IndexError) as error:
        raise ConfigError(f"{at}: does not fit {modality.dtype}{list(shape)}: {error}") from error
    if (out.shape, out.dtype) != (shape, jnp.dtype(modality.dtype)):
        raise ConfigError(f"{at}: turns {modality.dtype}{list(shape)} into {out.dtype}{out.shape}")
    return lambda keys, x: row.apply(keys, x, **options)


def _fold(keys: jax.Array, number: int) -> jax.Array:
    return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)
