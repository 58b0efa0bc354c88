"""The scalar of a task's prediction that attribution follows, and its text for a reader."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mtmm_jax.tasks.traits import arrays_of


class Explained(NamedTuple):
    """A scalar of a prediction.

    Attributes:
        answer: `prediction -> [B, ...]`, what the model predicts: a class, a direction, or zeros
            where there is nothing to choose from.
        score: `(prediction, answer) -> [B]`, F: what the gradients are of.
        value: `(prediction, answer) -> [B]`, what deletions change: a probability, or a number in
            standard deviations.
        likelihood: whether `value` is a probability.
        readable: from a `value` to the number that a person reads.
        text: `(prediction [1, ...], answer of that row) -> str`; None: as `Task.decode` has it.
    """

    answer: Callable[[Any], jax.Array]
    score: Callable[[Any, jax.Array], jax.Array]
    value: Callable[[Any, jax.Array], jax.Array]
    likelihood: bool = False
    readable: Callable[[float], float] = lambda value: value
    text: Callable[[Any, Any], str] | None = None


def explained_class(classes: Sequence[str]) -> Explained:
    """log p of the likeliest class, of logits `[B, C]` of which one is true."""
    return _named(classes, jax.nn.log_softmax, jax.nn.softmax)


def explained_label(classes: Sequence[str]) -> Explained:
    """log p of the likeliest class, of logits `[B, C]` that are true or not."""
    return _named(classes, jax.nn.log_sigmoid, jax.nn.sigmoid)


def explained_number(mean: float, std: float) -> Explained:
    """The first number of `[B, N]`, which is standardised."""

    def number(prediction: jax.Array, answer: jax.Array) -> jax.Array:
        del answer
        return prediction[:, 0].astype(jnp.float32)

    return Explained(
        lambda prediction: jnp.zeros(prediction.shape[:1], jnp.int32),
        number,
        number,
        readable=lambda value: value * std + mean,
        text=lambda prediction, answer: f"{float(prediction[0, 0]) * std + mean:.4g}",
    )


def explained_projection() -> Explained:
    """F(x) = <z(x), u>, u = z(x_0) / |z(x_0)| the direction of the prediction of x_0 itself.

    For any prediction: z holds all its real numbers (`traits.arrays_of`), and u is constant.
    """

    def direction(prediction: Any) -> jax.Array:
        z = _numbers(prediction)
        return z / jnp.maximum(jnp.linalg.norm(z, axis=1, keepdims=True), 1e-12)

    def along(prediction: Any, answer: jax.Array) -> jax.Array:
        return (_numbers(prediction) * answer).sum(1)

    return Explained(direction, along, along)


PROJECTION = explained_projection()


def _named(classes: Sequence[str], log_p: Callable, p: Callable) -> Explained:
    return Explained(
        lambda prediction: prediction.argmax(-1),
        lambda prediction, answer: _chosen(log_p(prediction), answer),
        lambda prediction, answer: _chosen(p(prediction), answer),
        likelihood=True,
        text=lambda prediction, answer: classes[int(answer)],
    )


def _chosen(values: jax.Array, answer: jax.Array) -> jax.Array:
    return jnp.take_along_axis(values.astype(jnp.float32), answer[:, None], axis=1)[:, 0]


def _numbers(prediction: Any) -> jax.Array:
    """`[B, P]`: all real numbers of a prediction."""
    arrays = [jnp.asarray(x) for x in arrays_of(prediction).values()]
    real = [x for x in arrays if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.concatenate([x.astype(jnp.float32).reshape(x.shape[0], -1) for x in real], axis=1)
