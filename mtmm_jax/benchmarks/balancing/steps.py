"""The training steps that the balancing benchmark times, each compiled once, when it is built."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mtmm_jax import balancing
from mtmm_jax.balancing.base import decide, gather
from mtmm_jax.benchmarks.balancing import models

BATCH = {"mlp": 128, "resnet": 16}
FAMO_TWICE = "famo(same)"


class Step:
    """One compiled training step with SGD, its parameters donated from call to call."""

    def __init__(self, trunk: str, num_tasks: int, balancer: Any, engine: str, chunk: int) -> None:
        losses_fn = models.tapped_mlp() if engine == "gramian" else models.split(trunk)
        second = balancer.rule.second_sample
        fn = balancing.value_and_grad(
            losses_fn, balancer, engine=engine, shared=models.shared_labels, chunk=chunk
        )

        def step(params: Any, state: Any, batch: Any) -> tuple[Any, Any]:
            out = fn(params, state, batch, other=(batch,) if second else None)
            params = jax.tree.map(lambda p, g: p - 1e-3 * g, params, out.grads)
            return params, self.after(losses_fn, balancer, params, out.state, batch)

        self.params = models.init(trunk, num_tasks)
        self.state = balancer.init(self.params, models.shared_labels)
        self.batch = jax.tree.map(jnp.asarray, models.data(trunk, num_tasks, BATCH[trunk]))
        jitted = jax.jit(step, donate_argnums=(0, 1))
        self.compiled = jitted.lower(self.params, self.state, self.batch).compile()
        self.megabytes = self.compiled.memory_analysis().temp_size_in_bytes / 2**20

    def after(self, losses_fn: Any, balancer: Any, params: Any, state: Any, batch: Any) -> Any:
        """The method's work once the parameters have moved: nothing."""
        del losses_fn, balancer, params, batch
        return state

    def __call__(self) -> None:
        self.params, self.state = self.compiled(self.params, self.state, self.batch)
        jax.block_until_ready(self.params)


class FamoTwice(Step):
    """FAMO as published: the losses of the same batch once more after the step."""

    def after(self, losses_fn: Any, balancer: Any, params: Any, state: Any, batch: Any) -> Any:
        """Forward again, and learn."""
        sums, counts, _ = losses_fn(params, batch)
        return balancer.observe(state, sums / counts)


def build(trunk: str, num_tasks: int, method: str, engine: str, chunk: int) -> Step:
    """The compiled step of a method and engine."""
    if method == FAMO_TWICE:
        return FamoTwice(trunk, num_tasks, balancing.famo(num_tasks, after="same"), engine, 1)
    return Step(trunk, num_tasks, balancing.build(method, num_tasks), engine, min(chunk, num_tasks))


def engines_of(method: str, trunk: str) -> list[str]:
    """The engines that can give a method its evidence."""
    rule = balancing.build(method, 2).rule
    if rule.needs == "losses":
        return ["losses"]
    if rule.needs == "jacobian" or rule.second_sample:
        return ["full"]
    return ["representation", "full", *(["gramian"] if trunk == "mlp" else [])]


def solver_call(method: str, num_tasks: int) -> Callable[[], Any]:
    """The rule alone, inside jit, on conflicting random gradients."""
    rng = np.random.default_rng(num_tasks)
    rows = {"x": rng.normal(size=(num_tasks, 2 * num_tasks)).astype(np.float32)}
    balancer = balancing.build(method, num_tasks)
    state = balancer.init({"x": rows["x"][0]})
    losses = np.linspace(0.5, 1.5, num_tasks, dtype=np.float32)
    evidence = jax.jit(gather)(losses, np.ones(num_tasks, bool), rows, rows)
    evidence = evidence._replace(grads=None)
    decided = jax.jit(lambda s, e: decide(balancer.rule, s, e))
    return lambda: jax.block_until_ready(decided(state.rule, evidence))
