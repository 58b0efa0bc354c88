"""Pooling of tokens to one vector of a text, as in sentence-transformers' `modules.json`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mtmm_jax.batch import Tokens
from mtmm_jax.encoders.backbones.folder import WeightsFolder
from mtmm_jax.registry import ConfigError


def _sum(tokens: Tokens) -> tuple[jax.Array, jax.Array]:
    keep = tokens.mask[..., None].astype(tokens.values.dtype)
    return (tokens.values * keep).sum(1), jnp.maximum(keep.sum(1), 1)


def _square_root(tokens: Tokens) -> jax.Array:
    total, count = _sum(tokens)
    return total / jnp.sqrt(count)


def _largest(tokens: Tokens) -> jax.Array:
    lowest = jnp.where(tokens.mask[..., None], tokens.values, -jnp.inf).max(1)
    return jnp.where(tokens.present[:, None], lowest, 0.0)


# In the order in which several are joined.
MODES: dict[str, Callable[[Tokens], jax.Array]] = {
    "cls_token": lambda tokens: tokens.values[:, 0],
    "max_tokens": _largest,
    "mean_tokens": Tokens.mean,
    "mean_sqrt_len_tokens": _square_root,
}


@dataclasses.dataclass(frozen=True)
class Pooling:
    """Poolings to be joined, and whether vectors have length 1.

    Attributes:
        modes: of `MODES`.
        normalised: divided by their L2 norm.
        length: the most tokens of a text, None where the folder says nothing.
    """

    modes: tuple[str, ...] = ("mean_tokens",)
    normalised: bool = False
    length: int | None = None

    def __call__(self, tokens: Tokens) -> jax.Array:
        """`[B, D]` float32."""
        found = [MODES[mode](tokens) for mode in self.modes]
        vectors = jnp.concatenate(found, axis=-1) if len(found) > 1 else found[0]
        if not self.normalised:
            return vectors
        norm = jnp.linalg.norm(vectors, axis=-1, keepdims=True)
        return vectors / jnp.maximum(norm, 1e-12)


def pooling_of(folder: WeightsFolder, where: str) -> Pooling:
    """That of a folder's `modules.json`; the mean of all tokens where there is none."""
    modules = folder.optional("modules.json", where) or []
    at = f"{where}: {folder.path}"
    modes, normalised = [], False
    for module in modules:
        kind = str(module.get("type") if isinstance(module, dict) else module).rsplit(".", 1)[-1]
        if kind == "Normalize":
            normalised = True
        elif kind == "Pooling":
            place = str(module.get("path", ""))
            if "/" in place or "\\" in place or place == "..":
                raise ConfigError(f"{at}/modules.json: {place!r} is no folder in it")
            modes = _modes(folder.optional(f"{place}/config.json", where) or {}, at)
        elif kind != "Transformer":
            raise ConfigError(
                f"{at}/modules.json: has a {kind}; known are Transformer, Pooling and Normalize"
            )
    own = folder.optional("sentence_bert_config.json", where) or {}
    length = own.get("max_seq_length") if isinstance(own, dict) else None
    length = length if type(length) is int and length > 2 else None
    return Pooling(tuple(modes) or ("mean_tokens",), normalised, length)


def _modes(config: Any, at: str) -> list[str]:
    prefix = "pooling_mode_"
    wanted = [k.removeprefix(prefix) for k, v in config.items() if k.startswith(prefix) and v]
    if unknown := [mode for mode in wanted if mode not in MODES]:
        raise ConfigError(f"{at}: pools by {unknown[0]!r}; known are {', '.join(MODES)}")
    return [mode for mode in MODES if mode in wanted]
