"""Towers of the tasks that exchange features after every layer: cross-stitch and sluice."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mtmm_jax.batch import Tokens
from mtmm_jax.layers import auxiliary, gelu
from mtmm_jax.ranges import Blocks, NonNegative, PositiveShare, Several
from mtmm_jax.registry import ConfigError, check_fields
from mtmm_jax.sharing.parts import WHERE, form, select_tasks


def _near_identity(own: PositiveShare, tasks: int) -> np.ndarray:
    """`own` on the diagonal, the rest of each row spread evenly: rows sum to one."""
    if tasks == 1:
        return np.ones((1, 1), np.float32)
    rest = (1.0 - own) / (tasks - 1)
    return np.where(np.eye(tasks, dtype=bool), own, rest).astype(np.float32)


def _towers(
    tasks: tuple[str, ...], layers: int, copies: Mapping[str, Tokens]
) -> list[dict[str, nn.Dense]]:
    width, dtype = form(copies)
    return [
        {task: nn.Dense(width, dtype=dtype, name=f"layer{i + 1}_{task}") for task in tasks}
        for i in range(layers)
    ]


class CrossStitch(nn.Module):
    """x_k <- GELU(W_kl x_k), then x_k <- sum_j a_kj x_j, a_kj = A_kj / sum_j |A_kj|, in layer l.

    A tower for each task and a matrix A for each layer, which starts at `own` on the diagonal and
    (1 - own) / (K - 1) next to it; its rows are normalised over the tasks that are there, so that
    stitching does not change the features' scale, and may learn negative entries.

    Output k reads copies[k] only, through all towers; copies[j] does not reach it, tower j's
    parameters do.

    Paper: Misra et al. 2016, arXiv:1604.03539. Costs K towers, and K^2 of them in the backward
    pass. Use it: when it is not known which layers should be shared, with a handful of tasks. Not:
    with dozens.

    Attributes:
        layers: of the towers, each with a stitch behind it.
        own: the share that a task keeps of its own features at the start.
    """

    tasks: tuple[str, ...]
    layers: Blocks = 2
    own: PositiveShare = 0.9

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
        tasks = tuple(copies)
        towers = _towers(tasks, self.layers, copies)
        stitches = [self._stitch(i + 1, tasks) for i in range(self.layers)]
        own = {}
        for number, task in enumerate(tasks):
            x = [copies[task].values] * len(tasks)
            for tower, stitch in zip(towers, stitches, strict=True):
                h = jnp.stack([gelu(tower[t](part)) for t, part in zip(tasks, x, strict=True)])
                x = list(jnp.einsum("kj,jbnd->kbnd", stitch.astype(h.dtype), h))
            own[task] = copies[task].replace_values(x[number])
        return own

    def _stitch(self, layer: int, tasks: tuple[str, ...]) -> jax.Array:
        """`[K, K]` over the tasks that are there; a single task has nothing to learn here."""
        count = len(self.tasks)
        if count == 1:
            return jnp.ones((1, 1))
        matrix = self.param(
            f"matrix{layer}", lambda _: jnp.asarray(_near_identity(self.own, count))
        )
        rows = np.array([self.tasks.index(task) for task in tasks])
        matrix = matrix[np.ix_(rows, rows)]
        stitch = matrix / jnp.maximum(jnp.abs(matrix).sum(-1, keepdims=True), 1e-6)
        self.sow("intermediates", f"stitch{layer}", stitch)
        return stitch


class Sluice(nn.Module):
    """In layer l: g_k = GELU(W_kl x_k) in S parts, x_ks <- sum_jt alpha_l[ks, jt] g_jt; then z_k =
    sum_l beta_kl x_k^l. Added to the loss: lambda sum_kl sum_(s<t) |W_kls^T W_klt|_F^2.

    Each tower's features are S subspaces; the alphas say which subspace of which task enters which,
    the betas which layers a task's output is read from, and the penalty keeps a layer's subspaces
    apart, so that one may be shared and another private. Here the subspaces are blocks of a layer's
    output columns, and it is these blocks of the kernel that are held orthogonal. The alphas start
    near identity over the tasks and at identity over the subspaces, the betas at 1 / layers.

    Output k reads copies[k] only, through all towers; copies[j] does not reach it, tower j's
    parameters do.

    Paper: Ruder et al. 2019, arXiv:1705.08142. Costs as `CrossStitch`, and D^3 / 2 for the penalty
    of each layer, once a batch. Use it: instead of `CrossStitch` where what to share differs within
    a layer and by depth, and there is data to learn (K S)^2 numbers a layer.

    Attributes:
        layers: of the towers.
        subspaces: S; the width must divide by it.
        own: the share of its own features that a subspace keeps at the start.
        orthogonality: lambda. The term grows with the width; 0 leaves it out.
    """

    tasks: tuple[str, ...]
    layers: Blocks = 2
    subspaces: Several = 2
    own: PositiveShare = 0.9
    orthogonality: NonNegative = 1e-3

    keeps_layout: ClassVar[bool] = True
    has_auxiliary: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_fields(self, WHERE)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, copies: Mapping[str, Tokens], *, train: bool = False, axis_name: str | None = None
    ) -> dict[str, Tokens]:
        del train, axis_name
        copies = select_tasks(self.tasks, copies)
        width, dtype = form(copies)
        if width % self.subspaces:
            raise ConfigError(
                f"{WHERE}.subspaces: {self.subspaces} does not divide the tokens' width {width}; "
                f"choices: {', '.join(str(s) for s in range(2, width + 1) if width % s == 0)}"
            )
        tasks = tuple(copies)
        towers = _towers(tasks, self.layers, copies)
        rows = np.array([self.tasks.index(task) for task in tasks])
        alphas = [self._alpha(i + 1, rows).astype(dtype) for i in range(self.layers)]
        betas = self.param(
            "beta", nn.initializers.constant(1 / self.layers), (len(self.tasks), self.layers)
        )[rows]
        self.sow("intermediates", "beta", betas)
        own = {}
        for number, task in enumerate(tasks):
            x = [copies[task].values] * len(tasks)
            depths = []
            for tower, alpha in zip(towers, alphas, strict=True):
                g = jnp.stack([gelu(tower[t](part)) for t, part in zip(tasks, x, strict=True)])
                g = g.reshape(*g.shape[:-1], self.subspaces, width // self.subspaces)
                mixed = jnp.einsum("ksjt,jbntd->kbnsd", alpha, g)
                x = list(mixed.reshape(*mixed.shape[:-2], width))
                depths.append(x[number])
            z = jnp.einsum("l,lbnd->bnd", betas[number].astype(dtype), jnp.stack(depths))
            own[task] = copies[task].replace_values(z)
        if self.orthogonality:
            count = jnp.asarray(next(iter(copies.values())).mask.shape[0], jnp.float32)
            auxiliary(self, "orthogonality", count * self._overlap(towers), count)
        return own

    def _alpha(self, layer: int, rows: np.ndarray) -> jax.Array:
        """`[K, S, K, S]`, of the tasks in `rows`."""

        def start(_: Any) -> jax.Array:
            tasks = _near_identity(self.own, len(self.tasks))
            subspaces = np.eye(self.subspaces, dtype=np.float32)
            return jnp.asarray(np.einsum("kj,st->ksjt", tasks, subspaces))

        alpha = self.param(f"alpha{layer}", start)[rows][:, :, rows]
        self.sow("intermediates", f"alpha{layer}", alpha)
        return alpha

    def _overlap(self, towers: list[dict[str, nn.Dense]]) -> jax.Array:
        total = jnp.zeros((), jnp.float32)
        for tower, (a, b) in itertools.product(
            towers, itertools.combinations(range(self.subspaces), 2)
        ):
            for dense in tower.values():
                parts = jnp.split(dense.get_variable("params", "kernel"), self.subspaces, axis=1)
                total += jnp.square(parts[a].T @ parts[b]).sum()
        return self.orthogonality * total
