"""Detection by a map of centres: targets are assigned, and boxes read off, inside jit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mtmm_jax.tasks.boxes.geometry import centred, corners, giou, peaks
from mtmm_jax.tasks.metrics.mean_ap import Truth

_SPREAD = 0.1  # of the bump around a centre, in shares of the box's sides
_NEAR = 0.05  # cells with less of a bump than this do not learn its box
_SMALLEST, _FARTHEST = 1e-3, 8.0  # sides in shares of the picture; logarithms of sides in cells


def loss(
    prediction: Mapping[str, jax.Array],
    truth: Truth,
    class_loss: str,
    box_losses: Mapping[str, float],
    empty_weight: float,
) -> jax.Array:
    """`[B]`: the map against a bump at each centre, and the boxes of the cells under the bumps.

    Focal (Zhou et al. 2019): -(1 - p)^2 log p at a centre, -(1 - t)^4 p^2 log(1 - p) elsewhere, t
    the height of the bump; cross-entropy: -t log p - (1 - t) log(1 - p). Both for each class.
    Softmax: the focal loss of whether anything is there, sigmoid(logsumexp z), and of the cells
    under a bump the cross-entropy of what it is, softmax(z), with the weights of their boxes.
    """
    z, kinds = prediction["heat"], truth.classes
    bumps = bumps_of(truth, z.shape[1:3])
    cells, weight = _shares(bumps)
    cell_losses = jnp.zeros(weight.shape)
    if class_loss == "softmax":
        owner = jnp.take_along_axis(kinds, cells.reshape(len(cells), -1), axis=1)
        likely = jax.nn.log_softmax(z)
        cell_losses = -jnp.take_along_axis(likely, owner.reshape(*cells.shape, 1), axis=-1)[..., 0]
        z, kinds = jax.nn.logsumexp(z, axis=-1, keepdims=True), jnp.zeros_like(kinds)
    heat, centre = heat_of(bumps, truth._replace(classes=kinds), z.shape[-1])
    yes, no = jax.nn.log_sigmoid(z), jax.nn.log_sigmoid(-z)
    if class_loss != "cross_entropy":
        p = jax.nn.sigmoid(z)
        there = jnp.where(centre, jnp.square(1.0 - p) * yes, 0.0)
        empty = jnp.where(centre, 0.0, (1.0 - heat) ** 4 * jnp.square(p) * no)
    else:
        there, empty = heat * yes, (1.0 - heat) * no
    count = jnp.maximum(truth.valid.sum(-1), 1).astype(jnp.float32)
    classes = -(there + empty_weight * empty).sum((1, 2, 3)) / count
    wanted = jnp.take_along_axis(truth.boxes, cells.reshape(len(cells), -1, 1), axis=1)
    errors = _box_errors(prediction["box"], wanted.reshape(*cells.shape, 4), box_losses)
    return classes + (weight * (cell_losses + errors)).sum((1, 2)) / count


def guesses(prediction: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Every cell's box, and its scores where no neighbour has a higher one."""
    z = prediction["heat"]
    return _at_peaks(z, jax.nn.sigmoid(z), prediction["box"])


def guesses_of_one_class(prediction: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """As `guesses`, where a cell holds one thing: sigmoid(logsumexp z) softmax(z)."""
    z = prediction["heat"]
    there = jax.nn.logsumexp(z, axis=-1, keepdims=True)
    return _at_peaks(there, jax.nn.sigmoid(there) * jax.nn.softmax(z), prediction["box"])


def _at_peaks(z: jax.Array, scores: jax.Array, box: jax.Array) -> tuple[jax.Array, jax.Array]:
    scores = jnp.where(peaks(z), scores, 0.0)
    rows = len(scores)
    return decode(box).reshape(rows, -1, 4), scores.reshape(rows, -1, scores.shape[-1])


def trivial(frequencies: np.ndarray) -> dict[str, Any]:
    """One cell: a box half as high and wide as the picture, in its middle."""
    heat = np.log(np.clip(frequencies, 1e-4, 1 - 1e-4))
    box = np.array([0, 0, np.log(0.5), np.log(0.5)], np.float32)
    return {"heat": heat.astype(np.float32)[None, None], "box": box[None, None]}


def bumps_of(truth: Truth, grid: tuple[int, int]) -> jax.Array:
    """`[B, N, h, w]`: exp(-d^2 / 2 s^2) for each box, 1 in the cell of its centre; 0 if not valid.

    s is a share of the box's side in either direction (as in TTFNet, Liu et al. 2020).
    """
    boxes = centred(truth.boxes)
    along, centre = [], []
    for axis, cells in enumerate(grid):
        middles = jnp.arange(cells, dtype=jnp.float32) + 0.5
        at = boxes[..., axis : axis + 1] * cells
        spread = _SPREAD * jnp.maximum(boxes[..., 2 + axis, None], _SMALLEST) * cells
        along.append(jnp.exp(-0.5 * jnp.square((middles - at) / spread)))
        own = jnp.clip(jnp.floor(at), 0, cells - 1)
        centre.append(jnp.arange(cells) == own.astype(jnp.int32))
    bump = along[0][..., :, None] * along[1][..., None, :]
    cell = centre[0][..., :, None] & centre[1][..., None, :]
    bump = jnp.where(cell, 1.0, jnp.minimum(bump, 1.0 - 1e-6))
    return jnp.where(truth.valid[..., None, None], bump, 0.0)


def heat_of(bumps: jax.Array, truth: Truth, classes: int) -> tuple[jax.Array, jax.Array]:
    """`[B, h, w, C]`: the highest bump of each class, and whether a centre is there."""

    def one(bumps: jax.Array, kinds: jax.Array) -> jax.Array:
        return jnp.zeros((classes, *bumps.shape[1:])).at[kinds].max(bumps)

    heat = jax.vmap(one)(bumps, truth.classes).transpose(0, 2, 3, 1)
    return heat, heat >= 1.0


def _shares(bumps: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The box that each cell learns `[B, h, w]`, and its weight: those of a box add to 1."""
    owner = bumps.argmax(1)
    mine = owner[:, None] == jnp.arange(bumps.shape[1])[:, None, None]
    own = jnp.where(mine & (bumps > _NEAR), bumps, 0.0)
    total = own.sum((2, 3), keepdims=True)
    return owner, (own / jnp.where(total > 0, total, 1.0)).sum(1)


def _middles(grid: tuple[int, int]) -> jax.Array:
    """`[h, w, 2]`: the cells' middles, in cells."""
    along = [jnp.arange(cells, dtype=jnp.float32) + 0.5 for cells in grid]
    return jnp.stack(jnp.meshgrid(*along, indexing="ij"), axis=-1)


def decode(box: jax.Array) -> jax.Array:
    """The head's `[B, h, w, 4]` -> y0, x0, y1, x1 in 0..1."""
    grid = box.shape[1:3]
    cells = jnp.asarray(grid, jnp.float32)
    middle = (_middles(grid) + box[..., :2]) / cells
    side = jnp.exp(jnp.clip(box[..., 2:], -_FARTHEST, _FARTHEST)) / cells
    return corners(jnp.concatenate([middle, side], axis=-1))


def encode(boxes: jax.Array) -> jax.Array:
    """y0, x0, y1, x1 `[B, h, w, 4]` -> the target of the head."""
    grid = boxes.shape[1:3]
    cells = jnp.asarray(grid, jnp.float32)
    box = centred(boxes)
    side = jnp.log(jnp.maximum(box[..., 2:], _SMALLEST) * cells)
    return jnp.concatenate([box[..., :2] * cells - _middles(grid), side], axis=-1)


def _box_errors(predicted: jax.Array, boxes: jax.Array, losses: Mapping[str, float]) -> jax.Array:
    """`[B, h, w]`: the weighted sum of box losses at each cell."""
    gap = predicted - encode(boxes)
    # Far cells have no weight; large gaps there must not overflow when squared.
    gap = jnp.clip(gap, -1e3, 1e3)
    errors = {
        "l1": lambda: jnp.abs(gap).sum(-1),
        "mse": lambda: 0.5 * jnp.square(gap).sum(-1),
        "giou": lambda: 1.0 - giou(decode(predicted), boxes),
    }
    return sum(weight * errors[key]() for key, weight in losses.items())
