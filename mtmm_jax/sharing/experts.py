"""Experts that tasks mix by gates: shared by all (MMoE), or shared and a task's own (CGC, PLE)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from mtmm_jax.batch import Tokens
from mtmm_jax.ranges import Blocks, Several, Size
from mtmm_jax.registry import check_fields
from mtmm_jax.sharing.parts import WHERE, experts, form, mixture, select_tasks


class MMoE(nn.Module):
    """z_k = sum_e g_k(h)_e f_e(h), g_k(h) = softmax(W_k mean(h)).

    Experts f_e = Dense -> GELU -> Dense work token by token; the gate of a task is one for all
    tokens of a sample.

    Paper: Ma et al. 2018. Costs E experts, which every task's loss is taken back through. Use it:
    for tasks that are related to an unknown degree. Not: where one task is so strong that all
    experts become its own; `CGC` keeps some for each.

    Attributes:
        experts: E.
        expansion: hidden width of an expert over that of the tokens.
    """

    tasks: tuple[str, ...]
    experts: Several = 8
    expansion: Size = 1

    keeps_layout: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_fields(self, WHERE)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, copies: Mapping[str, Tokens], *, train: bool = False, axis_name: str | None = None
    ) -> dict[str, Tokens]:
        del train, axis_name
        copies = select_tasks(self.tasks, copies)
        names = [f"expert{e + 1}" for e in range(self.experts)]
        networks = experts(names, copies, self.expansion)
        own = {}
        for task, tokens in copies.items():
            score = nn.Dense(self.experts, use_bias=False, name=f"score_{task}")
            weights = nn.softmax(score(tokens.mean().astype(jnp.float32)))
            self.sow("intermediates", f"gate_{task}", weights)
            parts = [network(tokens.values) for network in networks]
            own[task] = tokens.replace_values(mixture(weights, parts))
        return own


class CGC(nn.Module):
    """z_k = sum_e g_k(h)_e f_e(h) over the shared experts and task k's own; no others.

    Customised gate control: g_k(h) = softmax(W_k mean(h)), as in `MMoE`, but what one task does to
    its own experts cannot hurt another.

    Paper: Tang et al. 2020. Costs K own + shared experts. Use it: where `MMoE` lifts one task at
    another's expense. Not: with many tasks of little data each, whose own experts learn nothing.

    Attributes:
        own, shared: how many experts each task has, and all have in common.
        expansion: hidden width of an expert over that of the tokens.
    """

    tasks: tuple[str, ...]
    own: Blocks = 2
    shared: Blocks = 2
    expansion: Size = 1

    keeps_layout: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_fields(self, WHERE)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, copies: Mapping[str, Tokens], *, train: bool = False, axis_name: str | None = None
    ) -> dict[str, Tokens]:
        del train, axis_name
        return _extract(self, copies, levels=1)


class PLE(nn.Module):
    """Level l: x_k <- sum_e g_kl(x_k)_e [f_kl(x_k); f_sl(x_s)]_e for each task, and x_s <- sum_e
    g_sl(x_s)_e [f_1l(x_1); ..; f_Kl(x_K); f_sl(x_s)]_e for what is shared.

    Progressive layered extraction: `CGC` stacked, with a shared path whose gate sees the experts of
    all tasks; z_k is x_k of the last level, where the shared path ends. Gates read the mean of
    their own path.

    Output k reads copies[k] only, through all paths; copies[j] does not reach it, the experts of
    task j below the last level do.

    Paper: Tang et al. 2020. Costs `levels` times K own + shared experts, K-fold below the last
    level in the backward pass. Use it: with a few tasks that conflict, and the data to fill it.
    Not: before `CGC` has helped.

    Attributes:
        levels: how many times features are extracted.
        own, shared: how many experts each task has on a level, and all have in common.
        expansion: hidden width of an expert over that of the tokens.
    """

    tasks: tuple[str, ...]
    levels: Several = 2
    own: Blocks = 2
    shared: Blocks = 2
    expansion: Size = 1

    keeps_layout: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_fields(self, WHERE)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, copies: Mapping[str, Tokens], *, train: bool = False, axis_name: str | None = None
    ) -> dict[str, Tokens]:
        del train, axis_name
        return _extract(self, copies, self.levels)


_SHARED = ""  # the path of no task


class _Level(nn.Module):
    """One extraction: the experts of every path, and a gate on the path of each one `wanted`."""

    own: Blocks
    shared: Blocks
    expansion: Size

    @nn.compact
    def __call__(
        self, x: Mapping[str, Tokens], wanted: tuple[str, ...]
    ) -> tuple[dict[str, Tokens], dict[str, jax.Array]]:
        seen = {path: tuple(x) if path == _SHARED else (path, _SHARED) for path in wanted}
        parts = {}
        for path in {p: None for paths in seen.values() for p in paths}:
            names = [f"own{i + 1}_{path}" for i in range(self.own)]
            if path == _SHARED:
                names = [f"shared{i + 1}" for i in range(self.shared)]
            networks = experts(names, x, self.expansion)
            parts[path] = [network(x[path].values) for network in networks]
        new, gates = {}, {}
        for path, paths in seen.items():
            # A task scores what it sees in one layer; the shared gate has one for each task, so
            # that a task that is not there is not among its parameters either.
            names = {f"score_{path}": paths}
            if path == _SHARED:
                names = {f"shared_score_{p}" if p else "shared_score": (p,) for p in paths}
            features = x[path].mean().astype(jnp.float32)
            scores = [
                nn.Dense(sum(len(parts[p]) for p in group), use_bias=False, name=name)(features)
                for name, group in names.items()
            ]
            gates[path] = nn.softmax(jnp.concatenate(scores, axis=-1))
            mixed = mixture(gates[path], [part for p in paths for part in parts[p]])
            new[path] = x[path].replace_values(mixed)
        return new, gates


def _extract(module: CGC | PLE, copies: Mapping[str, Tokens], levels: int) -> dict[str, Tokens]:
    """The levels of `PLE`, of which `CGC` is one; their modules are children of `module`."""
    copies = select_tasks(module.tasks, copies)
    form(copies)  # the shared experts take one width
    paths = (*copies, _SHARED)
    stack = [
        _Level(module.own, module.shared, module.expansion, name=f"level{i + 1}")
        for i in range(levels)
    ]
    own = {}
    for task, tokens in copies.items():
        x = dict.fromkeys(paths, tokens)
        for number, level in enumerate(stack, start=1):
            x, gates = level(x, (task,) if number == levels else paths)
            module.sow("intermediates", f"gate{number}_{task}", gates[task])
            if _SHARED in gates and task == paths[0]:
                module.sow("intermediates", f"shared_gate{number}", gates[_SHARED])
        own[task] = x[task]
    return own
