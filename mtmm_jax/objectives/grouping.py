"""A sharing stage for each group of tasks: tasks of different groups part after the fusion."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn

from mtmm_jax import registry, sharing
from mtmm_jax.batch import Tokens
from mtmm_jax.layers import gelu
from mtmm_jax.model import Model
from mtmm_jax.registry import ConfigError


def groupable(built: Model) -> tuple[str, ...]:
    """The tasks that pass the sharing stage."""
    return tuple(name for name in built.sharing.tasks if name not in built.decisions)


def grouped(
    built: Model, groups: Sequence[Sequence[str]], config: Mapping[str, Any], layers: int
) -> Model:
    """The model with a sharing stage for each group; with one group it stays as it is.

    Args:
        built: the model.
        groups: tasks by group.
        config: `config.model`, for its `sharing`.
        layers: of each group's own, before the sharing.
    """
    have = groupable(built)
    listed = sorted(name for group in groups for name in group)
    if listed != sorted(have):
        raise ConfigError(
            f"relatedness.found.groups: {', '.join(listed)} were grouped; the tasks that pass "
            f"the sharing are {', '.join(have)}: measure again in a new workdir"
        )
    if len(groups) < 2:
        return built
    entry, parts = registry.entry_of(config.get("sharing", "hard")), {}
    entry.pop("tasks", None)
    for number, names in enumerate(groups, 1):
        own = registry.build(sharing.SHARINGS, entry, where="model.sharing", tasks=tuple(names))
        parts[str(number)] = Branch(own, layers)
    return dataclasses.replace(built, sharing=Grouped(parts))


class Branch(nn.Module):
    """z_k = S(f(h)) for the tasks of one group: Dense -> GELU layers f, then a sharing S.

    Attributes:
        inner: S.
        layers: of f.
    """

    inner: nn.Module
    layers: int

    @nn.compact
    def __call__(self, copies: Mapping[str, Tokens], **mode: Any) -> dict[str, Tokens]:
        values = next(iter(copies.values())).values
        width, dtype = values.shape[-1], values.dtype
        own = dict(copies)
        for i in range(self.layers):
            layer = nn.Dense(width, dtype=dtype, name=f"layer{i + 1}")
            own = {k: t.replace_values(gelu(layer(t.values))) for k, t in own.items()}
        return self.inner(own, **mode)


class Grouped(nn.Module):
    """z_k = S_g(f_g(h)), g being the group of task k: a `Branch` for each group.

    Between `Hard`, one group, and `Separate`, a group for each task. Costs a sharing stage and
    `layers` D^2 for each group. Use it: where some tasks conflict and others do not, as
    `relatedness` finds out. Not: where the conflict is about the encoders, which all share.

    Attributes:
        group: by number.
    """

    group: Mapping[str, Branch]

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(name for branch in self.group.values() for name in branch.inner.tasks)

    @property
    def keeps_layout(self) -> bool:
        return all(branch.inner.keeps_layout for branch in self.group.values())

    @property
    def has_auxiliary(self) -> bool:
        return any(getattr(b.inner, "has_auxiliary", False) for b in self.group.values())

    @nn.compact
    def __call__(self, copies: Mapping[str, Tokens], **mode: Any) -> dict[str, Tokens]:
        own = {}
        for branch in self.group.values():
            mine = {k: tokens for k, tokens in copies.items() if k in branch.inner.tasks}
            own |= branch(mine, **mode) if mine else {}
        return own
