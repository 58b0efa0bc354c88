"""Alignment of tokens and frames: monotonic alignment, expansion by durations, time warping."""

from __future__ import annotations

import jax
import jax.numpy as jnp

_NEVER = -1e9


def align(scores: jax.Array, tokens: jax.Array, frames: jax.Array) -> jax.Array:
    """The best monotonic path: `[B, T]`, the token of each frame.

    From the first token at the first frame to the last at the last, a step of 0 or 1 a frame, so
    that each token has a frame at least (Kim et al. 2020, Glow-TTS). By dynamic programming:
    Q_{n,t} = score_{n,t} + max(Q_{n,t-1}, Q_{n-1,t-1}), and back from the end.

    Args:
        scores: `[B, N, T]`, larger is better.
        tokens: `[B]`, how many there are; not more than frames.
        frames: `[B]`. Frames behind them are given to the last token.
    """
    scores = jax.lax.stop_gradient(scores)
    count = scores.shape[1]
    start = jnp.where(jnp.arange(count) == 0, scores[:, :, 0], _NEVER)

    def forward(best: jax.Array, score: jax.Array) -> tuple[jax.Array, jax.Array]:
        moved = jnp.pad(best, ((0, 0), (1, 0)), constant_values=_NEVER)[:, :-1]
        return score + jnp.maximum(best, moved), moved > best

    _, came = jax.lax.scan(forward, start, jnp.moveaxis(scores[:, :, 1:], 2, 0))
    last = jnp.maximum(tokens - 1, 0)

    def back(token: jax.Array, step: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        moved, time = step  # `moved`: whether the path came to (token, time) from the one before
        here = jnp.take_along_axis(moved, token[:, None], 1)[:, 0]
        before = jnp.maximum(token - here.astype(token.dtype), 0)
        return jnp.where(time < frames, before, token), token

    times = jnp.arange(1, scores.shape[2])
    first, path = jax.lax.scan(back, last.astype(jnp.int32), (came, times), reverse=True)
    return jnp.concatenate([first[:, None], path.T], axis=1)


def expand(durations: jax.Array, frames: int) -> tuple[jax.Array, jax.Array]:
    """The token of each frame `[B, frames]`, and how far into it the frame's middle is, in 0..1.

    Args:
        durations: `[B, N]` in frames, 0 for tokens that are not there; need not be whole.
        frames: how many to give; those behind the end get the last token, and 1.
    """
    ends = jnp.cumsum(durations, axis=1)
    middle = jnp.arange(frames, dtype=durations.dtype) + 0.5
    token = (ends[:, None] <= middle[None, :, None]).sum(-1)
    token = jnp.minimum(token, (durations > 0).sum(1, keepdims=True) - 1)
    token = jnp.maximum(token, 0)
    length = jnp.maximum(jnp.take_along_axis(durations, token, 1), 1e-6)
    start = jnp.take_along_axis(ends, token, 1) - length
    return token, jnp.clip((middle - start) / length, 0.0, 1.0)


def warped_distance(cost: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """`[B]`: the mean cost along the cheapest alignment of two sequences (dynamic time warping).

    In the symmetric form (Sakoe and Chiba 1978): a step in both counts twice, so that all paths
    weigh `rows + columns`, by which the sum is divided. Within a row, with C the running sum of
    its costs, d_j = C_j + min_{k <= j} (m_k - C_k), m_k the cheapest way in from the row before.

    Args:
        cost: `[B, N, M]`, not negative.
        rows, columns: `[B]`, how many there are.
    """
    first = 2 * cost[:, 0, :1]
    start = jnp.concatenate([first, first + jnp.cumsum(cost[:, 0, 1:], axis=1)], axis=1)

    def step(above: jax.Array, here: jax.Array) -> tuple[jax.Array, jax.Array]:
        corner = jnp.pad(above, ((0, 0), (1, 0)), constant_values=-_NEVER)[:, :-1]
        best = jnp.minimum(above + here, corner + 2 * here)
        total = jnp.cumsum(here, axis=1)
        now = total + jax.lax.cummin(best - total, axis=1)
        return now, now

    _, rest = jax.lax.scan(step, start, jnp.moveaxis(cost[:, 1:], 1, 0))
    table = jnp.concatenate([start[None], rest])
    batch = jnp.arange(cost.shape[0])
    end = table[jnp.maximum(rows - 1, 0), batch, jnp.maximum(columns - 1, 0)]
    return end / jnp.maximum(rows + columns, 1).astype(end.dtype)
