"""Modality dropout: in training, fusion does not see some modalities of some samples."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax.numpy as jnp

from mtmm_jax.batch import Tokens
from mtmm_jax.layers import batch_bernoulli
from mtmm_jax.model.forward import ForwardPass


def drop_modalities(
    forward: ForwardPass,
    tokens: Mapping[str, Tokens],
    rates: Mapping[str, float],
    inputs: tuple[str, ...],
) -> dict[str, Tokens]:
    """The tokens that fusion sees in training; a sample keeps at least one modality.

    Args:
        forward: the pass.
        tokens: modality -> tokens, of one fusion.
        rates: modality -> the chance to be dropped, from all fusions alike.
        inputs: the modalities that the batch has; each draws whether it is in this fusion or not.
    """
    present = jnp.stack([part.present for part in tokens.values()], axis=-1)
    keep = batch_bernoulli(
        forward.key("modality_dropout"),
        [1.0 - rates.get(name, 0.0) for name in inputs],
        (present.shape[0], len(inputs)),
        forward.mode["axis_name"],
    )
    here = [keep[:, inputs.index(name) if name in inputs else 0] for name in tokens]
    kept = present & jnp.stack(here, axis=-1)
    kept = jnp.where(kept.any(-1, keepdims=True), kept, present)
    return {
        name: dataclasses.replace(part, mask=part.mask & kept[:, i : i + 1])
        for i, (name, part) in enumerate(tokens.items())
    }
