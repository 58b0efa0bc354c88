"""Learning rates by task: `config.optimizer.tasks`.

A rate r_k acts on two things: what task k does to shared parameters, `sum_k r_k w_k g_k` (see
`balancing.pacing`), and its own head, whose updates are multiplied by r_k after the optimiser.
Were the head's gradient scaled instead, Adam and its like would divide the rate out again.

    balancer = pace(balancer, {"category": 0.5}, tasks)           # or {"kind": "gradient_norm"}
    heads = functools.partial(pace_heads, balancer=balancer, tasks=tasks)
    optimizer, rates = optimizers.build(config, steps, heads)
    out = balancing.value_and_grad(losses_fn, balancer)(params, state.balancing, batch)
    optimizer.update(out.grads, state.optimizer, params, task_rates=current_rates(out.state))
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import optax

from mtmm_jax.assembly import Parts, StepHook
from mtmm_jax.balancing.base import Balancer
from mtmm_jax.balancing.base import current_rates as current_rates
from mtmm_jax.balancing.pacing import paced
from mtmm_jax.optim.per_path import by_path
from mtmm_jax.ranges import Entry, Positive
from mtmm_jax.registry import check, choose

PyTree = Any


def pace(
    balancer: Balancer,
    rates: Mapping[str, Any] | str | None,
    tasks: Sequence[str],
    where: str = "optimizer.tasks",
) -> Balancer:
    """The balancer of the model's tasks, paced; to be called before
    `balancing.with_auxiliary_losses`.

    Args:
        balancer: of all tasks.
        rates: `{task: rate}`, 1 for those not named; or an entry of `balancing.pacing.PACES`, such
            as `{"kind": "gradient_norm", "power": 0.5}`; or None, which changes nothing.
        tasks: their names, in order.
        where: the place in the config.
    """
    if check(rates, Entry | None, where) is None:
        return balancer
    if isinstance(rates, str) or isinstance(rates.get("kind"), str):
        return paced(balancer, rates, where=where)
    for name, rate in rates.items():
        choose(name, tasks, f"{where}.{name}", "task")
        check(rate, Positive, f"{where}.{name}")
    return paced(balancer, [float(rates.get(name, 1.0)) for name in tasks], where=where)


def extend(section: Any, parts: Parts) -> Parts:
    """The extension `optimizer.tasks`: of the balancer, the heads' updates and the step."""
    make = parts.make_balancer

    def make_paced(config: Any, num_tasks: int) -> Balancer:
        return pace(make(config, num_tasks), section, parts.model.loss_names[:num_tasks])

    def around(parts: Parts) -> Any:
        return functools.partial(
            pace_heads,
            balancer=parts.balancer,
            tasks=tuple(parts.model.tasks),
            head_gradients=parts.trainer.get("head_gradients"),
        )

    hook = StepHook("optimizer.tasks", extra=lambda state: {"task_rates": current_rates(state)})
    return parts.replace(make_balancer=make_paced, around_heads=around).add_hook(hook)


def pace_heads(
    optimizer: optax.GradientTransformation,
    balancer: Balancer,
    tasks: Sequence[str],
    head_gradients: str | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Multiplies the updates below `heads/<task>/` by that task's rate.

    A head whose gradient has the rate already, as weighted gradients do, is freed of it first, so
    that the rate acts once under any optimiser. Parameters of `sharing` go by the optimiser's rate.

    Args:
        optimizer: any; its `update` is given `task_rates`, `[K]`, besides. None leaves all as it
            is.
        balancer: the paced one.
        tasks: their names, in order.
        head_gradients: as in `balancing.value_and_grad`.
    """
    default = "weighted" if balancer.rule.needs == "losses" else "own"
    weighted = (head_gradients or default) == "weighted"
    inner = optax.with_extra_args_support(optimizer)
    number = {name: k for k, name in enumerate(tasks)}

    def scaled(tree: PyTree, factors: jax.Array) -> PyTree:
        def one(path: str, leaf: Any) -> Any:
            room, name, *_ = [*path.split("/"), ""]
            if room != "heads" or name not in number:
                return leaf
            return leaf * factors[number[name]].astype(leaf.dtype)

        return by_path(one, tree)

    def update(
        updates: PyTree,
        state: PyTree,
        params: PyTree | None = None,
        *,
        task_rates: jax.Array | None = None,
        **extra: Any,
    ) -> tuple[PyTree, PyTree]:
        if task_rates is None:
            return inner.update(updates, state, params, **extra)
        if weighted:
            updates = scaled(updates, 1 / task_rates)
            if again := extra.get("grad_fn"):
                extra["grad_fn"] = lambda p, i: scaled(again(p, i), 1 / task_rates)
        updates, state = inner.update(updates, state, params, **extra)
        return scaled(updates, task_rates), state

    return optax.GradientTransformationExtraArgs(inner.init, update)
