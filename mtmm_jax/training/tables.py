"""Tables of a run before it starts: its parameters, tasks, memory, and their places on devices."""

from __future__ import annotations

import json
import math
from typing import Any

import jax
from rich.table import Table

from mtmm_jax import model
from mtmm_jax.devices import parallel
from mtmm_jax.devices.machine import bytes_of
from mtmm_jax.devices.mesh import Layout
from mtmm_jax.model import Model
from mtmm_jax.tasks.task import is_fusion, modalities_of
from mtmm_jax.training.experiment import Experiment


def parameter_table(params: Any) -> Table:
    """Parameters by module: path, tensors, numbers, megabytes."""
    groups: dict[str, list[Any]] = {}
    for path, leaf in model.flatten(params).items():
        groups.setdefault("/".join(path.split("/")[:2]), []).append(leaf)
    table = Table(title="parameters")
    table.add_column("module")
    for column in ("tensors", "parameters", "MB"):
        table.add_column(column, justify="right")
    total = 0
    for name, leaves in groups.items():
        size = sum(math.prod(leaf.shape) for leaf in leaves)
        total += size
        bytes_ = sum(map(bytes_of, leaves))
        table.add_row(name, str(len(leaves)), f"{size:,}", f"{bytes_ / 1e6:.2f}")
    table.add_section()
    table.add_row("total", "", f"{total:,}", "")
    return table


def task_table(built: Model) -> Table:
    """The task x modality matrix: who reads what, and where the labels are."""
    table = Table(title="tasks x modalities")
    for column in ("task", "kind", "label", *built.encoders):
        table.add_column(column)
    for name, task in built.tasks.items():
        marks = []
        for modality in built.encoders:
            reads = [r for r in task.reads if modality in modalities_of(r, built.encoders)]
            marks.append(", ".join("fused" if is_fusion(r) else "own" for r in reads))
        table.add_row(name, task.kind, task.target or "(none)", *marks)
    return table


def lowered_step(experiment: Experiment) -> Any:
    """The step that a device runs, traced and not yet compiled, of shapes without numbers."""
    devices = experiment.devices
    rows = experiment.config["batch_size"]
    if isinstance(devices, Layout):
        state = parallel.abstract(experiment.shapes, devices)
        program = parallel.program(experiment.step(), devices)
    else:
        rows //= devices
        state, program = experiment.shapes, parallel.program(experiment.step())
    batch = jax.eval_shape(lambda: experiment.model.spec.example(rows))
    if isinstance(devices, Layout):
        batch = jax.tree.map(lambda x: x.update(sharding=devices.rows), batch)
    return program.lower(state, batch)


def memory_table(experiment: Experiment, compiled: Any = None) -> Table:
    """The memory of the compiled step, as the compiler reports it.

    Args:
        experiment: whose step it is.
        compiled: `lowered_step(experiment).compile()`, if that is at hand.
    """
    devices = experiment.devices
    if isinstance(devices, Layout):
        state = parallel.abstract(experiment.shapes, devices)
    else:
        state = experiment.shapes
    compiled = compiled or lowered_step(experiment).compile()
    analysis = compiled.memory_analysis()
    state_bytes = sum(_bytes_a_device(x) for x in jax.tree.leaves(state))
    table = Table(title="memory a device (estimate)")
    table.add_column("what")
    table.add_column("MB", justify="right")
    table.add_row("parameters, optimiser and balancing state", f"{state_bytes / 1e6:.1f}")
    if analysis is not None:
        table.add_row("activations and temporaries", f"{analysis.temp_size_in_bytes / 1e6:.1f}")
        inputs = analysis.argument_size_in_bytes - state_bytes
        table.add_row("batch", f"{max(inputs, 0) / 1e6:.1f}")
    return table


def partition_table(experiment: Experiment) -> Table | None:
    """On a mesh: each partition rule, what it takes, and what of that a device holds."""
    layout = experiment.devices
    if not isinstance(layout, Layout):
        return None
    shape = " x ".join(f"{name} {size}" for name, size in layout.mesh.shape.items())
    table = Table(title=f"partition: {shape}")
    for column in ("paths", "axes"):
        table.add_column(column)
    for column in ("tensors", "MB", "MB a device"):
        table.add_column(column, justify="right")
    params = parallel.abstract(experiment.shapes.params, layout)
    for rule in layout.rules:
        mine = [x for path, x in model.flatten(params).items() if layout.placed[path][1] == rule]
        whole = sum(map(bytes_of, mine))
        own = sum(map(_bytes_a_device, mine))
        axes = json.dumps(rule.axes)
        table.add_row(
            rule.pattern,
            axes,
            str(len(mine)),
            f"{whole / 1e6:.2f}",
            f"{own / 1e6:.2f}",
        )
    return table


def _bytes_a_device(x: Any) -> int:
    sharding = getattr(x, "sharding", None)
    shape = x.shape if sharding is None else sharding.shard_shape(x.shape)
    return math.prod(shape) * x.dtype.itemsize
