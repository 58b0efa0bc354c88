"""Devices: how one pure step runs on one device or on several.

A step is written once, as `step(state, batch, *, axis_name=None)`; `wrap` is the only place that
knows how many devices there are. Inside a step the collectives below are no-ops when `axis_name`
is None, so the same code is the single-device program.

`devices`, wherever it is asked for, is a number of local devices (1: `jit`; more: `pmap`) or a
`mesh.Layout` (`jit` over a named mesh, of one process or several); `place` makes it of a config.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Mapping
from functools import partial
from importlib import metadata
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from mtmm_jax import registry
from mtmm_jax.devices.mesh import FORMS, Layout
from mtmm_jax.devices.processes import initialize as initialize
from mtmm_jax.ranges import Count
from mtmm_jax.registry import ConfigError, check

AXIS = "devices"

Devices = int | Layout


def total(x: Any, axis_name: str | None) -> Any:
    """The sum over devices."""
    return x if axis_name is None else jax.lax.psum(x, axis_name)


def gather(x: jax.Array, axis_name: str | None) -> jax.Array:
    """The rows of all devices, in device order: `[B, ...] -> [n * B, ...]`."""
    return x if axis_name is None else jax.lax.all_gather(x, axis_name, tiled=True)


def device_count(requested: int | str, batch_size: int, where: str = "devices") -> int:
    """The number of local devices to use, checked against the batch size.

    Args:
        requested: a number, or "all".
        batch_size: of the whole step; it must divide over the devices.
    """
    available = jax.local_device_count()
    count = available if requested == "all" else requested
    check(requested, Count | Literal["all"], where)
    if count > available:
        raise ConfigError(
            f"{where}: {requested!r}: needs 'all' or a number from 1 to {available}, "
            f"the local devices of this machine"
        )
    if batch_size % count:
        divisors = [d for d in range(1, available + 1) if batch_size % d == 0]
        raise ConfigError(
            f"batch_size: {batch_size} does not divide over {count} devices; "
            f"choose a multiple of {count}, or {where} among {divisors}"
        )
    return count


def place(requested: Any, batch_size: int, where: str = "devices") -> Devices:
    """`config.devices` -> devices, checked against the batch size.

    Args:
        requested: a number of local devices, "all", or a section of `mesh.FORMS`. Several
            processes need all devices: "all" is then a mesh with the rows divided over them.
        batch_size: of the whole step; it must divide over the devices.
    """
    if jax.process_count() > 1 and requested == "all":
        requested = {"kind": "mesh"}
    if isinstance(requested, Mapping):
        layout = registry.build(FORMS, requested, where=where, devices=jax.devices())
        check_rows(batch_size, layout, "batch_size", where)
        return layout
    if jax.process_count() > 1:
        raise ConfigError(
            f"{where}: {requested!r}: {jax.process_count()} processes need 'all', or a section "
            "such as {'kind': 'mesh', 'fsdp': -1, 'data': 1}"
        )
    return device_count(requested, batch_size, where)


def check_rows(size: int, devices: Devices, key: str, where: str = "devices") -> None:
    """Raises a `ConfigError` where rows do not divide over the devices."""
    if size % row_parts(devices):
        raise ConfigError(
            f"{key}: {size} does not divide over the {row_parts(devices)} devices that share the "
            f"rows of a batch ({where}); choose a multiple of {row_parts(devices)}"
        )


def row_parts(devices: Devices) -> int:
    """Into how many parts the rows of a batch are divided."""
    return devices if isinstance(devices, int) else devices.row_parts


def shard(devices: Devices) -> tuple[int, int]:
    """`(index, count)`: which part of each batch this process brings."""
    return (0, 1) if isinstance(devices, int) else devices.shard


def share(batch: Any, devices: Devices) -> Any:
    """This process's rows of a batch that all processes have whole."""
    index, count = shard(devices)
    if count == 1:
        return batch
    return jax.tree.map(lambda x: x[index * len(x) // count : (index + 1) * len(x) // count], batch)


def program(
    step: Callable[..., Any], devices: Devices = 1, *, donate: bool = True
) -> Callable[..., Any]:
    """`step(state, batch, *, axis_name)` under `jit`, on one device or over a mesh."""
    if not isinstance(devices, int):
        return devices.program(step, donate=donate)
    return jax.jit(partial(step, axis_name=None), donate_argnums=(0,) if donate else ())


def wrap(step: Callable[..., Any], devices: Devices, *, donate: bool = True) -> Callable[..., Any]:
    """Compiles `step(state, batch, *, axis_name)` for some devices.

    One device: `jax.jit`. Several: `jax.pmap`, with the state replicated (`replicate`) and the
    batch split along its rows. A mesh: `jax.jit` over global arrays, of which each process brings
    its rows (`shard`).
    """
    if not isinstance(devices, int):
        laid_out = devices.program(step, donate=donate)
        return lambda state, batch: laid_out(state, devices.take(batch))
    if devices == 1:
        return program(step, donate=donate)
    mapped = jax.pmap(
        partial(step, axis_name=AXIS),
        axis_name=AXIS,
        devices=jax.local_devices()[:devices],
        donate_argnums=(0,) if donate else (),
    )
    return lambda state, batch: mapped(state, split(batch, devices))


def split(batch: Any, devices: int) -> Any:
    """`[B, ...] -> [n, B / n, ...]` in every leaf."""
    return jax.tree.map(lambda x: np.reshape(x, (devices, -1, *np.shape(x)[1:])), batch)


def replicate(state: Any, devices: Devices) -> Any:
    """The state that `wrap` takes: one copy a device, or laid out on the mesh."""
    if not isinstance(devices, int):
        return devices.put(state)
    if devices == 1:
        return state
    mesh = jax.sharding.Mesh(np.array(jax.local_devices()[:devices]), (AXIS,))
    stacked = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(AXIS))

    def copies(x: Any) -> jax.Array:
        on_host = isinstance(x, np.ndarray | np.generic)  # then nothing is to be compiled
        broadcast_to = np.broadcast_to if on_host else jnp.broadcast_to
        return jax.device_put(broadcast_to(x, (devices, *np.shape(x))), stacked)

    return jax.tree.map(copies, state)


def first(state: Any, devices: Devices) -> Any:
    """The state without pmap's copies, and without moving it to the host where possible."""
    if devices == 1 or not isinstance(devices, int):
        return state
    return _without_copies(jax.tree.map(lambda x: x.addressable_shards[0].data, state))


@jax.jit  # one program for the whole tree, instead of one for each shape in it
def _without_copies(tree: Any) -> Any:
    return jax.tree.map(lambda x: x[0], tree)


def fetch(tree: Any, devices: Devices) -> Any:
    """The outputs of a wrapped step, on the host: the same on all devices."""
    if jax.default_backend() == "cpu":  # in the host's memory already: `device_get` would copy
        with jax.transfer_guard_device_to_host("allow"):
            values = jax.tree.map(np.asarray, tree)
    else:
        values = jax.device_get(tree)
    if devices == 1 or not isinstance(devices, int):
        return values
    return jax.tree.map(lambda x: x[0], values)


def parts(tree: Any, devices: Devices) -> list[Any]:
    """The outputs of a wrapped step, on the host, of each part of the rows: pmap's devices return
    their own, the others the whole."""
    values = jax.device_get(tree)
    if devices == 1 or not isinstance(devices, int):
        return [values]
    return [jax.tree.map(lambda x, i=i: x[i], values) for i in range(devices)]


def abstract(state: Any, devices: Devices) -> Any:
    """Shapes, dtypes and shardings of a state before `replicate`, which leaves them on a mesh."""
    if isinstance(devices, int):
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        shardings = jax.tree.map(lambda x: here, state)
    else:
        shardings = devices.of(state)
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, shardings
    )


def jit_once(fun: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """`jax.jit` of a program that runs once, such as what draws the first parameters.

    On a CPU it is compiled in a hurry: with all optimisations that takes several times as long, and
    longer than such a program could ever save.
    """
    if jax.default_backend() == "cpu":
        options["compiler_options"] = {"xla_backend_optimization_level": 0}
    return jax.jit(fun, **options)


# XLA's newer CPU fusions halve the speed of convolutions; Transformers do not gain by the switch.
CPU_FLAGS = {"--xla_cpu_experimental_ynn_fusion_type": ""}
# A flag that a release does not know ends the process, so it is set only where it was tried.
CPU_FLAGS_KNOWN = ((0, 10), (0, 12))


def set_cpu_flags() -> None:
    """Sets the CPU compiler flags; call it before jax is imported for the first time.

    `MTMM_JAX_CPU_FLAGS=0` switches them off; a flag that the user sets in `XLA_FLAGS` is kept.
    """
    release = tuple(int(part) for part in metadata.version("jaxlib").split(".")[:2])
    if os.environ.get("MTMM_JAX_CPU_FLAGS", "1") == "0" or release not in CPU_FLAGS_KNOWN:
        return
    flags = os.environ.get("XLA_FLAGS", "")
    wanted = [f"{name}={value}" for name, value in CPU_FLAGS.items() if name not in flags]
    os.environ["XLA_FLAGS"] = " ".join([flags, *wanted]).strip()


# glibc's names: M_MMAP_MAX, M_TRIM_THRESHOLD, M_ARENA_MAX.
MALLOC_OPTIONS = {-4: 0, -1: 2**31 - 1, -8: 1}


def keep_freed_memory() -> bool:
    """Makes glibc's malloc keep what is freed; call it before jax computes for the first time.

    By default every large buffer goes back to the system, and each step on the CPU faults its
    temporaries in anew. The price: the process stays as large as it has ever been. Nothing
    happens on other systems and C libraries; `MTMM_JAX_CPU_FLAGS=0` switches it off.

    Returns:
        Whether it was applied.
    """
    if os.environ.get("MTMM_JAX_CPU_FLAGS", "1") == "0" or not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(mallopt(*pair) == 1 for pair in MALLOC_OPTIONS.items())
