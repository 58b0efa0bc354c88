"""Connectionist temporal classification: a text from frames, without an alignment.

p(y | x) = sum over the paths of one symbol a frame that become y when repeats are merged and
blanks (id 0) dropped (Graves et al. 2006).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax

BLANK = 0


def ctc(logits: jax.Array, mask: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """-log p(y | x) of each row, and whether the frames suffice for its label at all.

    Args:
        logits: `[B, T, V]`.
        mask: `[B, T]`, the frames that are there; they may lie anywhere.
        labels: `[B, N]` ids, 0 after the end.

    Returns:
        `[B]` losses, 0 where no path exists, and `[B]` bool.
    """
    lengths = (labels != BLANK).sum(1)
    repeats = ((labels[:, 1:] == labels[:, :-1]) & (labels[:, 1:] != BLANK)).sum(1)
    fits = mask.sum(1) >= lengths + repeats
    clean = jnp.where(mask[..., None], logits.astype(jnp.float32), 0.0)
    loss = optax.ctc_loss(
        clean, 1.0 - mask.astype(jnp.float32), labels, (labels == BLANK).astype(jnp.float32)
    )
    return jnp.where(fits, loss, 0.0), fits


def greedy(logits: jax.Array, mask: jax.Array) -> jax.Array:
    """`[B, T]` ids of the likeliest path, merged and closed up, 0 after the end. Runs under jit."""
    best = jnp.where(mask, logits.argmax(-1), BLANK).astype(jnp.int32)
    before = jnp.pad(best, ((0, 0), (1, 0)), constant_values=BLANK)[:, :-1]
    kept = (best != before) & (best != BLANK)
    place = jnp.where(kept, jnp.cumsum(kept, axis=1) - 1, best.shape[1])
    rows = jnp.arange(best.shape[0])[:, None]
    return jnp.zeros_like(best).at[rows, place].set(best, mode="drop")


def beam_search(
    log_p: np.ndarray, width: int = 16, results: int = 1
) -> list[tuple[tuple[int, ...], float]]:
    """The likeliest texts of one row, with their log-probabilities, best first.

    Prefixes, not paths, are kept (Graves 2012; Hannun et al. 2014): each holds the probability of
    all its paths so far that end in a blank, and of those that do not. Exact when `width` is at
    least the number of texts that there can be.

    Args:
        log_p: `[T, V]` log-probabilities of the frames that are there.
        width: prefixes kept after each frame.
        results: how many to return.
    """
    never = -np.inf
    beam: dict[tuple[int, ...], tuple[float, float]] = {(): (0.0, never)}
    for frame in np.asarray(log_p, np.float64):
        grown: dict[tuple[int, ...], list[float]] = {}
        # Symbols beyond the `width` likeliest cannot extend more prefixes than are kept.
        symbols = [int(i) for i in np.argsort(-frame)[: width + 1] if i != BLANK]
        for prefix, (blank, symbol) in beam.items():
            either = np.logaddexp(blank, symbol)
            same = grown.setdefault(prefix, [never, never])
            same[0] = np.logaddexp(same[0], either + frame[BLANK])
            if prefix:
                same[1] = np.logaddexp(same[1], symbol + frame[prefix[-1]])
            for c in symbols:
                longer = grown.setdefault((*prefix, c), [never, never])
                start = blank if prefix and c == prefix[-1] else either
                longer[1] = np.logaddexp(longer[1], start + frame[c])
        best = sorted(grown, key=lambda prefix: -np.logaddexp(*grown[prefix]))[:width]
        beam = {prefix: tuple(grown[prefix]) for prefix in best}
    return [(prefix, float(np.logaddexp(*beam[prefix]))) for prefix in list(beam)[:results]]
