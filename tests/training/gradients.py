"""One SGD step of each tier, an absent task included, on any devices: what forms are compared by.

    python -m tests.training.gradients OUT COORDINATOR PROCESSES PROCESS AXES METHOD...

is one of several processes; the first writes what `one_step` gives.
"""

import json
import sys

import jax
import numpy as np
import optax

from mtmm_jax import balancing
from mtmm_jax.devices import mesh, parallel, processes
from mtmm_jax.model import shared_parameters
from mtmm_jax.training.step import TrainState, make_step
from tests import toy

# Losses only, a Gramian, the whole Jacobian.
METHODS = ("uncertainty", "pcgrad", "graddrop")
ABSENT = (None, "size")
# BatchNorm in the encoder of the series, negatives in the retrieval, dropout of modalities.
MODEL = {
    "encoders": {"series": {"kind": "conv1d", "norm": "batch"}, "text": "text_bag"},
    "fusion": "concat",
    "modality_dropout": 0.3,
}
TASKS = {**toy.TASKS, "pairs": {**toy.TASKS["pairs"], "reads": ["series", "text"]}}
# Masked attention besides, with the layers that the default rules split over `tensor`.
ATTENTION = {"encoders": {"text": "text_bag", "series": "conv1d"}, "fusion": "bottleneck"}
SGD = optax.sgd(1.0, momentum=0.9)


def layout(devices=None, **axes):
    return mesh.mesh(**axes, devices=devices or jax.devices())


def start(built, balancer):
    """A state with parameters drawn by NumPy, which needs no compiling."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: built.init(jax.random.key(0), built.spec.example(2)))

    def draw(path, leaf):
        if path[-1].key in ("scale", "var"):
            return np.ones(leaf.shape, leaf.dtype)
        noise = rng.standard_normal(leaf.shape) / max(np.prod(leaf.shape[:-1]), 1) ** 0.5
        return noise.astype(leaf.dtype)

    variables = jax.tree_util.tree_map_with_path(draw, shapes)
    params = variables["params"]
    rest = lambda p: (SGD.init(p), balancer.init(p, shared_parameters))  # noqa: E731
    optimizer, balancing = jax.device_get(jax.jit(rest)(params))
    stats = variables.get("batch_stats", {})
    return TrainState(np.zeros((), np.int32), params, stats, optimizer, balancing)


def steps(method, devices, *, accumulate=1, engine="auto", tasks=None, **changes):
    """The state before the first step, the devices, and the step."""
    built = toy.build(tasks or TASKS, **{**MODEL, **changes})
    balancer = balancing.build(method, len(built.tasks))
    state = start(built, balancer)
    step = make_step(built, balancer, SGD, seed=3, accumulate=accumulate, engine=engine)
    if not isinstance(devices, int):
        devices = devices.resolve(state.params)
    state = parallel.replicate(state, devices)
    if devices == 1 or not isinstance(devices, int):
        rows = batch(None)
        if devices != 1:
            rows = devices.take(parallel.share(rows, devices))
        program = parallel.program(step, devices, donate=False)
        fast = program.lower(state, rows).compile()
        take = (lambda x: x) if devices == 1 else devices.take
        return state, devices, lambda state, batch: fast(state, take(batch))
    return state, devices, parallel.wrap(step, devices, donate=False)


def batch(absent):
    found = toy.batch(8)
    if absent:
        found["targets"][absent]["present"][:] = False
    return found


def one_step(prepared, absent):
    """`{path: array}` of the new state and the metrics, whole, on the host."""
    state, devices, step = prepared
    new, outputs = step(state, parallel.share(batch(absent), devices))
    new = parallel.first(new, devices)
    whole = {"params": new.params, "batch_stats": new.batch_stats}
    if not isinstance(devices, int):
        everywhere = jax.sharding.NamedSharding(devices.mesh, jax.sharding.PartitionSpec())
        whole = jax.jit(lambda x: x, out_shardings=everywhere)(whole)
    metrics = parallel.fetch({k: outputs[k] for k in ("losses", "weights", "present")}, devices)
    metrics |= {"skipped": np.asarray(parallel.fetch(outputs["skipped"], devices))}
    leaves = jax.tree_util.tree_leaves_with_path({**jax.device_get(whole), "metrics": metrics})
    return {jax.tree_util.keystr(p, simple=True, separator="/"): np.asarray(x) for p, x in leaves}


def assert_equal(found, expected, tolerance=1e-5):
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        scale = max(1.0, float(np.abs(value).max(initial=0)))
        np.testing.assert_allclose(found[path], value, atol=tolerance * scale, err_msg=path)


def main(out, coordinator, count, process, axes, *methods):
    parallel.initialize(coordinator, int(count), int(process), heartbeat=20)
    found = {}
    for method in methods:
        prepared = steps(method, layout(**json.loads(axes)))
        for absent in ABSENT:
            new = one_step(prepared, absent)
            found |= {f"{method}|{absent}|{path}": value for path, value in new.items()}
    if processes.is_primary():
        np.savez(out, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
