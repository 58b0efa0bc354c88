"""Detection by set prediction: each box is matched with one guess, exactly, inside jit (DETR)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mtmm_jax.tasks.boxes.assignment import assign
from mtmm_jax.tasks.boxes.geometry import centred, corners, giou
from mtmm_jax.tasks.metrics.mean_ap import Truth


def loss(
    prediction: Mapping[str, jax.Array],
    truth: Truth,
    class_loss: str,
    box_losses: Mapping[str, float],
    empty_weight: float,
) -> jax.Array:
    """`[B]`: softmax cross-entropy of every guess, "none" if unmatched, and the matched boxes.

    The matching is the cheapest by -p(class) plus the box losses (Carion et al. 2020).
    """
    del class_loss  # there is one
    logits, predicted = prediction["logits"], prediction["box"]
    errors = _box_errors(predicted[:, None], truth.boxes[:, :, None], box_losses)  # [B, N, Q]
    log_p = jax.nn.log_softmax(logits)
    own = jnp.take_along_axis(log_p, truth.classes[:, None, :], axis=2).swapaxes(1, 2)
    owner = jax.vmap(assign)(errors - jnp.exp(own), truth.valid)
    hit = owner[..., None] == jnp.arange(logits.shape[1])  # [B, N, Q], none for rows of -1
    none = logits.shape[-1] - 1
    kinds = jnp.where(hit.any(1), jnp.where(hit, truth.classes[..., None], 0).sum(1), none)
    weight = jnp.where(kinds == none, empty_weight, 1.0)
    entropy = -jnp.take_along_axis(log_p, kinds[..., None], axis=2)[..., 0]
    classes = (weight * entropy).sum(1) / weight.sum(1)
    count = jnp.maximum(truth.valid.sum(1), 1).astype(jnp.float32)
    return classes + jnp.where(hit, errors, 0.0).sum((1, 2)) / count


def guesses(prediction: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Every guess' box, and its probability of each class."""
    return corners(prediction["box"]), jax.nn.softmax(prediction["logits"])[..., :-1]


def trivial(frequencies: np.ndarray) -> dict[str, Any]:
    """One guess: a box half as high and wide as the picture, in its middle."""
    logits = np.log(np.append(np.clip(frequencies, 1e-4, None), 1e-4))
    box = np.array([[0.5, 0.5, 0.5, 0.5]], np.float32)
    return {"logits": logits.astype(np.float32)[None], "box": box}


def _box_errors(predicted: jax.Array, boxes: jax.Array, losses: Mapping[str, float]) -> jax.Array:
    """Of guesses (centre, sides) against boxes that broadcast with them."""
    gap = predicted - centred(boxes)
    errors = {
        "l1": lambda: jnp.abs(gap).sum(-1),
        "mse": lambda: 0.5 * jnp.square(gap).sum(-1),
        "giou": lambda: 1.0 - giou(corners(predicted), boxes),
    }
    return sum(weight * errors[key]() for key, weight in losses.items())
