"""Differential privacy: each sample's gradient is clipped, and noise added to their sum.

`config.optimizer.private` = {"clip": 1.0, "noise": 1.1}, with any optimiser but sam:

    g = (sum_i g_i min(1, C / |g_i|) + C sigma N(0, I)) / B

g_i is the gradient of `sum_k w_k loss_ik`, w fixed; a sample without a label adds nothing for that
task, and B, unlike the number of labels, tells nothing about anyone (Abadi et al. 2016). What this
guarantees after some steps is `epsilon`. It holds for the parameters: the losses and metrics that
are logged are exact, and so is what validation chooses by.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mtmm_jax import registry
from mtmm_jax.assembly import Parts, StepHook
from mtmm_jax.balancing import Balanced, Balancer, Evidence
from mtmm_jax.balancing.base import advance, decide, not_finite
from mtmm_jax.keys import fold_in_name
from mtmm_jax.optim.per_path import by_path
from mtmm_jax.ranges import Between, Count, Natural, NonNegative, Positive, PositiveShare
from mtmm_jax.registry import ConfigError

PyTree = Any

# Weights that no sample has a say in.
METHODS = ("equal", "static")


class Private(NamedTuple):
    """The mechanism.

    Attributes:
        clip: C, the largest norm of a sample's gradient.
        noise: sigma, the noise's standard deviation in units of C.
        chunk: how many samples' gradients are in memory at a time; speed against memory.
    """

    clip: float
    noise: float
    chunk: int


def mechanism(
    *, clip: Positive = 1.0, noise: NonNegative = 1.0, chunk: Count = 16, where: str
) -> Private:
    return Private(float(clip), float(noise), chunk)


def read(spec: Mapping[str, Any] | None, where: str = "optimizer.private") -> Private | None:
    """`config.optimizer.private`, checked: clip, noise and chunk."""
    if spec is None:
        return None
    registry.check(spec, Mapping[str, Any], where)
    return registry.build({"gaussian": mechanism}, {"kind": "gaussian", **spec}, where=where)


def check(model: Any, batch_stats: PyTree, config: Mapping[str, Any]) -> None:
    """Refuses what lets one sample's gradient depend on others, or the weights on the samples.

    Args:
        model: the assembled one.
        batch_stats: its batch statistics, or their shapes.
        config: the whole, as plain dicts.
    """
    where = "optimizer.private"
    if jax.tree.leaves(batch_stats):
        raise ConfigError(
            f"{where}: BatchNorm mixes the samples of a batch, so that none has a gradient of its "
            "own; choose norm='group' in the encoders"
        )
    for name, task in model.tasks.items():
        if task.traits.compares_rows:
            raise ConfigError(
                f"{where}: tasks.{name} ({task.kind}) compares the samples of a batch, so that "
                "none has a gradient of its own; leave it out"
            )
    if model.auxiliaries:
        raise ConfigError(
            f"{where}: the auxiliary loss {model.auxiliaries[0]!r} is that of a whole batch; "
            "choose a model without regularisers and without the even use of experts"
        )
    spec = config["balancing"]
    spec = registry.entry_of(spec)
    registry.choose(spec["kind"], METHODS, "balancing.kind", f"method with {where}")
    if spec.get("wrap"):
        raise ConfigError(f"balancing.wrap: with {where} weights are fixed; leave it out")
    optimizer = config["optimizer"]
    if optimizer["kind"] == "sam":
        raise ConfigError(
            f"optimizer.kind: sam takes two gradients of each sample; not with {where}"
        )
    if optimizer.get("accumulate", 1) != 1:
        raise ConfigError(f"optimizer.accumulate: not with {where}, which has a chunk of its own")
    tasks = optimizer.get("tasks")
    if isinstance(tasks, str) or isinstance((tasks or {}).get("kind"), str):
        raise ConfigError(
            f"optimizer.tasks: {tasks!r} reads the samples; with {where} rates are fixed"
        )


def extend(section: Any, parts: Parts) -> Parts:
    """The extension `optimizer.private`: its gradient takes the place of the step's."""
    private, model = read(section), parts.model
    check(model, model.shapes.get("batch_stats", {}), parts.config)

    def gradient(losses: Any, balancer: Balancer, axis_name: str | None) -> Any:
        return value_and_grad(losses, balancer, private, axis_name=axis_name)

    return parts.add_hook(StepHook("optimizer.private", gradient=gradient))


def value_and_grad(
    losses_fn: Callable[..., tuple[jax.Array, jax.Array, PyTree]],
    balancer: Balancer,
    private: Private,
    *,
    axis_name: str | None = None,
) -> Callable[..., Balanced]:
    """The private gradient, to stand where the step has `balancing.value_and_grad`.

    Samples are batches of one row under `vmap`, `chunk` at a time, the chunks unrolled; each
    device has its own, and the noise, once, is the same everywhere.

    Cost: B gradients instead of one; chunk x P numbers. Convolutions are slow by sample on a CPU.

    Args:
        losses_fn: `(params, batch_stats, batch, key) -> (sums [K], counts [K], aux)`, such as
            `model.split()`: no axis, since samples do not know each other.
        balancer: with weights that no sample changes.
        private: the mechanism.
        axis_name: the device axis under `pmap`.

    Returns:
        `fn(params, state, batch_stats, batch, key, other=None) -> Balanced`, whose diagnostics have
        `clipped`, the share of samples that were.
    """
    rule, num_tasks = balancer.rule, balancer.num_tasks

    def summed(tree: PyTree) -> PyTree:
        return tree if axis_name is None else jax.lax.psum(tree, axis_name)

    def fn(
        params: PyTree, state: Any, batch_stats: PyTree, batch: PyTree, key: jax.Array, other=None
    ) -> Balanced:
        del other  # methods that need a second sample have no fixed weights
        everyone = jnp.ones((num_tasks,), bool)
        outcome = decide(rule, state.rule, Evidence(jnp.zeros((num_tasks,)), everyone))

        def loss(params: PyTree, row: PyTree, key: jax.Array):
            sums, counts, aux = losses_fn(params, batch_stats, row, key)
            return jnp.sum(outcome.weights * sums), (sums, counts, aux)

        by_sample = jax.vmap(jax.grad(loss, has_aux=True), in_axes=(None, 0, 0))
        rows = jax.tree.map(lambda x: x[:, None], batch)
        size = jax.tree.leaves(rows)[0].shape[0]
        own = key if axis_name is None else jax.random.fold_in(key, jax.lax.axis_index(axis_name))
        keys = jax.vmap(jax.random.fold_in, (None, 0))(own, jnp.arange(size, dtype=jnp.uint32))
        parts = []
        for start in range(0, size, private.chunk):
            part = jax.tree.map(lambda x, s=start: x[s : s + private.chunk], (rows, keys))
            grads, (sums, counts, aux) = by_sample(params, *part)
            leaves, treedef = jax.tree.flatten(grads)
            clipped, number = optax.per_example_global_norm_clip(leaves, private.clip)
            parts.append((clipped, sums.sum(0), counts.sum(0), number.astype(jnp.float32)))
        clipped, sums, counts, number = summed(jax.tree.map(lambda *x: sum(x), *parts))
        whole = summed(jnp.float32(size))
        grads = with_noise(jax.tree.unflatten(treedef, clipped), private, key)
        grads = jax.tree.map(lambda g: g / whole.astype(g.dtype), grads)
        skipped = not_finite(grads)
        return Balanced(
            losses=jnp.where(counts > 0, sums / jnp.where(counts > 0, counts, 1), 0),
            grads=grads,
            state=advance(state, outcome, everyone, skipped),
            diagnostics={
                "weights": outcome.weights,
                "present": counts > 0,
                "skipped": skipped,
                "clipped": number / whole,
            },
            aux=jax.tree.map(lambda x: x[0], aux),
        )

    return fn


def with_noise(total: PyTree, private: Private, key: jax.Array) -> PyTree:
    """`total + C sigma N(0, I)`; every leaf draws by its path."""

    def one(path: str, leaf: jax.Array) -> jax.Array:
        own = fold_in_name(key, f"privacy/{path}")
        return leaf + private.clip * private.noise * jax.random.normal(own, leaf.shape, leaf.dtype)

    return by_path(one, total)


def epsilon(noise: float, share: float, steps: int, delta: float = 1e-5) -> float:
    """The epsilon of (epsilon, delta)-privacy after `steps` steps.

    The Renyi divergence of the sampled Gaussian at whole orders a (Mironov, Talwar, Zhang 2019),

        R(a) = log(sum_j C(a, j) (1 - q)^(a - j) q^j exp((j^2 - j) / (2 sigma^2))) / (a - 1),

    adds up over steps; the best order is converted (Canonne, Kamath, Steinke 2020).

    The bound is for batches to which each sample comes with probability q, independently of all
    others. Shuffled epochs, as here, are commonly reported by the same number; strictly they
    are not covered by it.

    Args:
        noise: sigma; infinity is returned at 0.
        share: q, batch size / samples.
        steps: how many.
        delta: below 1 / samples.
    """
    from scipy.special import gammaln, logsumexp  # slow to import

    for name, value, hint in (
        ("noise", noise, NonNegative),
        ("share", share, PositiveShare),
        ("steps", steps, Natural),
        ("delta", delta, Between),
    ):
        registry.check(value, hint, f"epsilon.{name}")
    if noise == 0 or steps == 0:
        return float("inf") if steps else 0.0
    found = []
    for order in range(2, 513):
        j = np.arange(order + 1)
        with np.errstate(divide="ignore", invalid="ignore"):
            rest = np.where(order == j, 0.0, (order - j) * np.log1p(-share))
        terms = gammaln(order + 1) - gammaln(j + 1) - gammaln(order - j + 1)
        terms = terms + rest + j * np.log(share) + (j * j - j) / (2 * noise**2)
        divergence = steps * float(logsumexp(terms)) / (order - 1)
        extra = np.log1p(-1 / order) - (np.log(delta) + np.log(order)) / (order - 1)
        found.append(divergence + extra)
    return max(float(min(found)), 0.0)
