"""Cost of a model: parameters by room, floating-point operations and time of a step."""

from __future__ import annotations

import math
import statistics
import time
from typing import Any

import jax

from mtmm_jax.batch import Batch
from mtmm_jax.devices import parallel
from mtmm_jax.model import flatten
from mtmm_jax.ranges import Count
from mtmm_jax.registry import check
from mtmm_jax.training.experiment import Experiment


def parameters_by_room(params: Any) -> dict[str, dict[str, int]]:
    """`{room: {module: numbers}}`, such as `{"encoders": {"image": 60000}}`."""
    rooms: dict[str, dict[str, int]] = {}
    for path, leaf in flatten(params).items():
        room, _, rest = path.partition("/")
        module = rest.split("/")[0]
        modules = rooms.setdefault(room, {})
        modules[module] = modules.get(module, 0) + math.prod(leaf.shape)
    return rooms


def operations(compiled: Any) -> float | None:
    """Floating-point operations by the compiler's own count; None where the backend has none.

    A loop's body counts once however often it runs: recurrent encoders are underestimated.
    """
    try:
        analysis = compiled.cost_analysis()
    except (NotImplementedError, jax.errors.JaxRuntimeError):
        return None
    if isinstance(analysis, list):
        analysis = analysis[0] if analysis else None
    count = (analysis or {}).get("flops")
    return float(count) if count is not None and count > 0 else None


def step_cost(experiment: Experiment, batch: Batch, calls: int = 10) -> dict[str, Any]:
    """Parameters, operations of a forward pass and of a training step, and the step's time.

    The median of `calls` steps after two that are not counted, from initial parameters, on one
    device of this machine, whatever the run was trained on. Two compiles.

    Args:
        experiment: whose step it is.
        batch: of a training batch's size.
        calls: how many steps are timed.
    """
    check(calls, Count, "step_cost.calls")
    model = experiment.model
    state = experiment.drawn()  # as costly, and no weights are needed
    params = parameters_by_room(state.params)
    forward = jax.jit(lambda variables, inputs: model(variables, inputs)[0])
    forward_program = forward.lower(state.variables, batch["inputs"]).compile()
    step = parallel.program(experiment.step()).lower(state, batch).compile()
    done = {"forward_flops": operations(forward_program), "step_flops": operations(step)}
    times = []
    for _ in range(calls + 2):
        start = time.perf_counter()
        state, metrics = step(state, batch)
        jax.block_until_ready((state, metrics))
        times.append(time.perf_counter() - start)
    return {
        "parameters": params,
        "total_parameters": sum(sum(modules.values()) for modules in params.values()),
        "batch_size": len(batch["weight"]),
        **done,
        "step_seconds": statistics.median(times[2:]),
        "device": jax.devices()[0].device_kind,
    }
