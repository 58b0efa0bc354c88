"""A sparse, smooth choice of k experts for each task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mtmm_jax.batch import Tokens
from mtmm_jax.layers import auxiliary
from mtmm_jax.ranges import NonNegative, Positive, Several, Size
from mtmm_jax.registry import ConfigError, check_fields
from mtmm_jax.sharing.parts import WHERE, experts, mixture, select_tasks


def smooth_step(t: jax.Array, gamma: Positive) -> jax.Array:
    """0 up to -gamma / 2, 1 from gamma / 2 on, and -2 t^3 / gamma^3 + 3 t / (2 gamma) + 1 / 2
    between: continuous with its slope, and exactly 0 and 1 outside."""
    t = jnp.clip(t, -gamma / 2, gamma / 2)
    return -2 / gamma**3 * t**3 + 3 / (2 * gamma) * t + 0.5


def select(codes: jax.Array, gamma: Positive) -> jax.Array:
    """`[..., m] -> [..., 2^m]`: prod_j S(c_j) over the set bits j of an expert's number, and of
    1 - S(c_j) over the others. Sums to one."""
    steps = smooth_step(codes, gamma)[..., None, :]
    bits = codes.shape[-1]
    code = (np.arange(2**bits)[:, None] >> np.arange(bits)) & 1
    return jnp.where(code == 1, steps, 1 - steps).prod(-1)


class DSelect(nn.Module):
    """z_k = sum_e q_e f_e(h), q = sum_i softmax(a)_i r(c_i): k single-expert selectors, mixed.

    r is `select`: the number of an expert is written in m = log2(E) bits, each a smooth step of a
    learned code c, so that once the codes leave -gamma / 2 .. gamma / 2 a selector is exactly one
    expert, and at most k experts count, while every step on the way there can be differentiated. a
    and c are linear in mean(h), or learned numbers of the task. The entropy of the selectors,
    `entropy` times its mean over the samples, is added to the loss, which drives them to one expert
    each. The paper has a further term that keeps codes away from numbers without expert; with E a
    power of two there are none.

    Paper: Hazimeh et al. 2021, arXiv:2106.03760. Costs as `MMoE`: all experts are computed while
    the choice is soft. Use it: for many experts of which each task should use few, and to read off
    which. Not: with few experts; `MMoE` is simpler.

    Attributes:
        experts: E, a power of two.
        k: selectors a task, the most experts that it ends with.
        gamma: the width of the smooth step; larger is softer for longer.
        entropy: the weight of the entropy term; 0 leaves it out.
        by_sample: whether the choice depends on the sample, or is the task's.
        expansion: hidden width of an expert over that of the tokens.
    """

    tasks: tuple[str, ...]
    experts: Several = 8
    k: Size = 2
    gamma: Positive = 1.0
    entropy: NonNegative = 1e-3
    by_sample: bool = True
    expansion: Size = 1

    keeps_layout: ClassVar[bool] = True
    has_auxiliary: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_fields(self, WHERE)
        if self.experts & (self.experts - 1):
            raise ConfigError(
                f"{WHERE}.experts: {self.experts} is not a power of two; choices: 2, 4, 8, 16, ..."
            )
        if self.k > self.experts:
            raise ConfigError(f"{WHERE}.k: {self.k} is more than the {self.experts} experts")
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
            codes, shares = self._choices(task, tokens)
            selectors = select(codes, self.gamma)
            weights = jnp.einsum("bk,bke->be", shares, selectors)
            self.sow("intermediates", f"gate_{task}", weights)
            self._add_entropy(task, selectors, tokens)
            parts = [network(tokens.values) for network in networks]
            own[task] = tokens.replace_values(mixture(weights, parts))
        return own

    def _choices(self, task: str, tokens: Tokens) -> tuple[jax.Array, jax.Array]:
        """Codes `[B, k, m]` and the selectors' shares `[B, k]`, in float32."""
        bits = self.experts.bit_length() - 1
        rows = tokens.mask.shape[0]

        def near_zero(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32):
            limit = self.gamma / 100
            return jax.random.uniform(key, shape, dtype, -limit, limit)

        if self.by_sample:
            features = tokens.mean().astype(jnp.float32)
            code = nn.Dense(self.k * bits, kernel_init=near_zero, name=f"code_{task}")
            codes = code(features).reshape(rows, self.k, bits)
            if self.k == 1:
                return codes, jnp.ones((rows, 1))
            return codes, nn.softmax(nn.Dense(self.k, name=f"share_{task}")(features))
        codes = self.param(f"code_{task}", near_zero, (self.k, bits))
        codes = jnp.broadcast_to(codes, (rows, *codes.shape))
        if self.k == 1:
            return codes, jnp.ones((rows, 1))
        shares = nn.softmax(self.param(f"share_{task}", nn.initializers.zeros, (self.k,)))
        return codes, jnp.broadcast_to(shares, (rows, self.k))

    def _add_entropy(self, task: str, selectors: jax.Array, tokens: Tokens) -> None:
        if not self.entropy:
            return
        # An expert that is out counts 0, with a slope that is finite.
        entropy = -(selectors * jnp.log(jnp.maximum(selectors, 1e-6))).sum((1, 2))
        present = tokens.present.astype(jnp.float32)
        total = self.entropy * (entropy * present).sum()
        auxiliary(self, f"entropy_{task}", total, present.sum())
