"""`jit` over a named mesh of devices, with sharded parameters, for one process or several.

The rows of a batch lie on the axes `data` and `fsdp`, parameters on `fsdp` and `tensor`. A step
stays the program of one device, over arrays that are sharded; the compiler puts in the collectives
(GSPMD, Xu et al. 2021), so sums over rows are over all rows. Use it when parameters and optimiser
state outgrow one device: a device holds `1 / (fsdp * tensor)` of them, and parameters are gathered,
or activations exchanged, in every pass.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mtmm_jax.devices.partition import (
    AXES,
    DEFAULT_RULES,
    PartitionRule,
    Rules,
    partition,
    read_rules,
)
from mtmm_jax.ranges import Range, Seconds
from mtmm_jax.registry import ConfigError, check

AxisSize = Annotated[int, Range(1, 2**20)] | Literal[-1]
ROWS = ("data", "fsdp")


@dataclasses.dataclass(frozen=True, eq=False)
class Layout:
    """A mesh of devices and the placement of arrays on it; accepted wherever a number of devices
    is.

    Attributes:
        mesh: of the axes `data`, `fsdp` and `tensor`.
        rules: of the parameters.
        strict: whether the rules are the user's: one that does not fit is then an error.
        timeout: seconds without a step after which one of several processes gives up.
        shard: `(index, count)`, this process's part of each batch's rows; see `shard_of`.
        placed: path -> (shape, rule, spec) of each parameter; see `resolve`.
    """

    mesh: jax.sharding.Mesh
    rules: tuple[PartitionRule, ...] = DEFAULT_RULES
    strict: bool = False
    timeout: float = 1800.0
    shard: tuple[int, int] = (0, 1)
    placed: Mapping[str, tuple[tuple[int, ...], PartitionRule, PartitionSpec]] = dataclasses.field(
        default_factory=dict
    )

    def resolve(self, params: Any, where: str = "devices.rules") -> Layout:
        """With the place of every parameter; `params` has arrays or their shapes."""
        shapes = {_path(path): leaf.shape for path, leaf in _leaves(params)}
        found = partition(shapes, self.rules, dict(self.mesh.shape), where, strict=self.strict)
        placed = {path: (shapes[path], *found[path]) for path in shapes}
        return dataclasses.replace(self, placed=placed)

    @property
    def row_parts(self) -> int:
        """Into how many parts the rows of a batch are divided."""
        return math.prod(self.mesh.shape[axis] for axis in ROWS)

    def of(self, tree: Any) -> Any:
        """The sharding of every leaf: a parameter's own, wherever in `tree` it stands.

        Optimiser and balancing state follow the parameter whose path theirs ends in, if they have
        its shape, or `[K, *shape]` (one row a task); everything else is whole on every device.
        """

        def one(path: Any, leaf: Any) -> NamedSharding:
            keys, shape = _path(path).split("/"), tuple(np.shape(leaf))
            for start in range(len(keys)):
                own, _, spec = self.placed.get("/".join(keys[start:]), (None, None, None))
                if shape == own:
                    return NamedSharding(self.mesh, spec)
                if own is not None and shape[1:] == own:
                    return NamedSharding(self.mesh, PartitionSpec(None, *spec))
            return NamedSharding(self.mesh, PartitionSpec())

        return jax.tree_util.tree_map_with_path(one, tree)

    @property
    def rows(self) -> NamedSharding:
        """The sharding of every leaf of a batch."""
        return NamedSharding(self.mesh, PartitionSpec(ROWS))

    def put(self, tree: Any) -> Any:
        """The whole tree, the same on all processes, laid out."""
        return jax.tree.map(jax.device_put, tree, self.of(tree))

    def take(self, batch: Any) -> Any:
        """This process's rows of a batch as part of the global one."""

        def one(x: Any) -> jax.Array:
            shape = (self.shard[1] * np.shape(x)[0], *np.shape(x)[1:])
            return jax.make_array_from_process_local_data(self.rows, np.asarray(x), shape)

        return jax.tree.map(one, batch)

    def program(self, step: Callable[..., Any], *, donate: bool = True) -> Callable[..., Any]:
        """`step(state, batch, *, axis_name)` compiled for global arrays; what comes out lies where
        it lay before."""

        def laid_out(state: Any, batch: Any) -> Any:
            out = step(state, batch, axis_name=None)
            return jax.lax.with_sharding_constraint(out, self.of(out))

        return jax.jit(laid_out, donate_argnums=(0,) if donate else ())


def _leaves(tree: Any) -> list[tuple[Any, Any]]:
    return jax.tree_util.tree_leaves_with_path(tree)


def _path(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _said(sizes: Mapping[str, int]) -> str:
    return " x ".join(f"{name} {size}" for name, size in sizes.items())


def shard_of(mesh: jax.sharding.Mesh, where: str = "devices") -> tuple[int, int]:
    """`(index, count)`: the part of each batch's rows that lies on this process's devices.

    Processes that hold the same rows, as when `tensor` spans them, have the same part.
    """
    blocks: dict[int, set[tuple[int, ...]]] = {}
    for place, device in np.ndenumerate(mesh.devices):
        blocks.setdefault(device.process_index, set()).add(place[: len(ROWS)])
    groups = sorted({tuple(sorted(block)) for block in blocks.values()})
    rows = math.prod(mesh.shape[axis] for axis in ROWS)
    if sum(map(len, groups)) != rows or len({len(group) for group in groups}) > 1:
        raise ConfigError(
            f"{where}: {_said(mesh.shape)} leaves {len(blocks)} processes with rows that overlap; "
            "let tensor divide the devices of a process, or be a multiple of them"
        )
    return groups.index(tuple(sorted(blocks[jax.process_index()]))), len(groups)


def axis_sizes(sizes: Mapping[str, int], count: int, where: str = "devices") -> dict[str, int]:
    """The axes' sizes for `count` devices; -1, once, is what the others leave."""
    for name, size in sizes.items():
        check(size, AxisSize, f"{where}.{name}")
    known = math.prod(size for size in sizes.values() if size != -1)
    open_ = [name for name, size in sizes.items() if size == -1]
    if len(open_) > 1:
        raise ConfigError(f"{where}: -1 for {' and '.join(open_)}; only one axis can be the rest")
    full = {name: count // known if size == -1 else size for name, size in sizes.items()}
    if math.prod(full.values()) != count:
        raise ConfigError(
            f"{where}: {_said(sizes)} does not make the {count} devices here; "
            f"give sizes whose product is {count}, or -1 for one axis"
        )
    return full


def mesh(
    *,
    data: AxisSize = -1,
    fsdp: AxisSize = 1,
    tensor: AxisSize = 1,
    rules: Rules | None = None,
    timeout: Seconds = 1800.0,
    devices: Sequence[Any],
    where: str = "devices",
) -> Layout:
    """`jit` over a named mesh of all devices of all processes.

    Args:
        data: copies of the parameters; each takes its part of the rows.
        fsdp: parts of the parameters and of the rows.
        tensor: parts of the parameters; the same rows.
        rules: `[[regex, axes], ...]`, see `PartitionRule`; `DEFAULT_RULES` by default.
        timeout: seconds without a step after which one of several processes gives up.
        devices, where: given by `parallel.place`.
    """
    sizes = axis_sizes({"data": data, "fsdp": fsdp, "tensor": tensor}, len(devices), where)
    made = jax.make_mesh(
        tuple(sizes.values()), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices
    )
    own = DEFAULT_RULES if rules is None else read_rules(rules, f"{where}.rules")
    return Layout(made, own, rules is not None, float(timeout), shard_of(made, where))


FORMS = {"mesh": mesh}


def fits(requested: Any, count: int) -> bool:
    """Whether `config.devices`, if it is a mesh, can be made of `count` devices."""
    if not isinstance(requested, Mapping):
        return True
    sizes = {axis: requested[axis] for axis in AXES if axis in requested}
    try:
        axis_sizes({"data": -1, **sizes}, count)
    except ConfigError:
        return False
    return True
