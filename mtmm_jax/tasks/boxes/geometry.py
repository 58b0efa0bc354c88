"""Geometry of boxes `[..., 4]` (y0, x0, y1, x1): overlap, suppression, peaks. Pure, under jit."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def area(boxes: jax.Array) -> jax.Array:
    """`[...]`; zero where a box is inside out."""
    return jnp.maximum(boxes[..., 2:] - boxes[..., :2], 0.0).prod(-1)


def _overlap(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Intersection and union of boxes that broadcast against each other."""
    low = jnp.maximum(a[..., :2], b[..., :2])
    high = jnp.minimum(a[..., 2:], b[..., 2:])
    shared = jnp.maximum(high - low, 0.0).prod(-1)
    return shared, area(a) + area(b) - shared


def iou(a: jax.Array, b: jax.Array) -> jax.Array:
    """`[..., N, 4]`, `[..., M, 4]` -> `[..., N, M]`: intersection over union, 0 of nothing."""
    shared, union = _overlap(a[..., :, None, :], b[..., None, :, :])
    return shared / jnp.maximum(union, 1e-9)


def giou(a: jax.Array, b: jax.Array) -> jax.Array:
    """IoU less the share of the common hull that neither fills (Rezatofighi et al. 2019): -1..1.

    Box by box; it has a slope where boxes do not touch.
    """
    shared, union = _overlap(a, b)
    low = jnp.minimum(a[..., :2], b[..., :2])
    high = jnp.maximum(a[..., 2:], b[..., 2:])
    hull = jnp.maximum((high - low).prod(-1), 1e-9)
    return shared / jnp.maximum(union, 1e-9) - (hull - union) / hull


def corners(boxes: jax.Array) -> jax.Array:
    """Centre (y, x), height and width -> y0, x0, y1, x1."""
    half = 0.5 * boxes[..., 2:]
    return jnp.concatenate([boxes[..., :2] - half, boxes[..., :2] + half], axis=-1)


def centred(boxes: jax.Array) -> jax.Array:
    """y0, x0, y1, x1 -> centre (y, x), height and width."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return jnp.concatenate([0.5 * (low + high), high - low], axis=-1)


def suppress(boxes: jax.Array, classes: jax.Array, alive: jax.Array, threshold: float) -> jax.Array:
    """`[K]` bool: non-maximum suppression of `[K]` boxes in falling order of score.

    Of the boxes that are `alive`, one goes if one of its class that stays, stands before it and
    overlaps it by more than `threshold`. K steps of K comparisons, whatever the values are.
    """
    rival = (iou(boxes, boxes) > threshold) & (classes[:, None] == classes[None, :])
    places = jnp.arange(len(boxes))
    rival = rival & (places[:, None] < places[None, :])  # [one before, one behind]

    def visit(i: jax.Array, kept: jax.Array) -> jax.Array:
        return kept & ~(kept[i] & rival[i])

    return jax.lax.fori_loop(0, len(boxes), visit, alive)


def peaks(heat: jax.Array) -> jax.Array:
    """`[B, h, w, C]` bool: cells that no neighbour among the eight exceeds."""
    low = jnp.asarray(-jnp.inf, heat.dtype)
    highest = jax.lax.reduce_window(
        heat, low, jax.lax.max, (1, 3, 3, 1), (1, 1, 1, 1), padding="SAME"
    )
    return heat >= highest
