"""Checkpoints by Orbax: asynchronous, the last ones and the best one kept, exact to the example.

A sharded state is written as it lies, by all processes, and read to any layout: what one device
saved a mesh goes on with, and the other way round.
"""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from orbax.checkpoint import v1 as ocp

from mtmm_jax.devices import parallel
from mtmm_jax.registry import ConfigError
from mtmm_jax.store.workdir import Workdir, writing

_policies = ocp.training.preservation_policies
_copied = jax.jit(lambda state: jax.tree.map(jnp.copy, state))


def _tells_more(record: logging.LogRecord) -> bool:
    """Not what Orbax's threads tell of an error that comes out of `wait` and `restore` as well."""
    words = ("_SignalingThread.run() raised", "Task exception was never retrieved")
    return not any(word in record.getMessage() for word in words)


for _name in ("absl", "asyncio"):
    logging.getLogger(_name).addFilter(_tells_more)


def restore_from(
    workdir: Workdir, step: int | str, like: Any, devices: parallel.Devices, where: str
) -> tuple[int, Any]:
    """`(step, state)` of one of a run's checkpoints.

    Args:
        workdir: the run's folder.
        step: "best" by the validation score, "last", or a step that is kept.
        like: a tree with the state's shapes and dtypes.
        devices: as `Checkpoints.restore` takes them.
        where: the option that named the run, for messages.
    """
    if not workdir.checkpoints.is_dir():
        raise ConfigError(f"{where}: {workdir.path} has no checkpoint yet")
    keep = workdir.config()["checkpoint"]["keep"]
    checkpoints = Checkpoints(workdir.checkpoints, keep)
    try:
        named = {"best": checkpoints.best, "last": checkpoints.latest}
        found = named[step]() if step in named else step
        if found is None:
            raise ConfigError(f"{where}: {workdir.path} has no checkpoint yet")
        if found not in checkpoints.steps():
            kept = ", ".join(map(str, checkpoints.steps())) or "none"
            raise ConfigError(f"{where}: step {step!r} is not kept; there are: {kept}")
        return found, checkpoints.restore(found, like, devices)[0]
    finally:
        checkpoints.close()


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: where they are.
        keep: how many of the latest stay; the best by the validation score stays besides.
    """

    def __init__(self, folder: Path, keep: int = 1) -> None:
        self.folder = folder
        best = _policies.BestN(
            get_metric_fn=lambda metrics: metrics["score"],
            n=1,
            keep_checkpoints_without_metrics=False,
        )
        self._orbax = ocp.training.Checkpointer(
            folder.absolute(),
            preservation_policy=_policies.AnyPreservationPolicy([_policies.LatestN(keep), best]),
            cleanup_tmp_directories=True,
        )

    def save(
        self,
        state: Any,
        score: float | None,
        iterator: dict[str, Any],
        progress: dict[str, Any] | None = None,
    ) -> None:
        """Begins to save; returns while the writing goes on.

        Args:
            state: of the training.
            score: of the validation at this step, if there was one.
            iterator: the state of the data.
            progress: how the validation score went so far, see `training.stopping`.
        """
        step = int(jax.device_get(state.step))
        if self.latest() == step:
            return
        # The next steps are given this state's buffers to write into while it is being saved.
        state = _copied(state)
        with jax.transfer_guard_device_to_host("allow"), self._writing():
            self._orbax.save_checkpointables_async(
                step,
                {"state": state},
                force=True,
                metrics=None if score is None else {"score": float(score)},
                custom_metadata={
                    "iterator": json.dumps(iterator),
                    "score": score,
                    "progress": json.dumps(progress),
                },
            )

    def steps(self) -> list[int]:
        """Those that are there, the earliest first."""
        return sorted(found.step for found in self._orbax.checkpoints)

    def latest(self) -> int | None:
        found = self._orbax.latest
        return None if found is None else found.step

    def best(self) -> int | None:
        """The step of the best validation score, or the latest where none was scored."""
        scored = [
            (found.metrics["score"], found.step)
            for found in self._orbax.checkpoints
            if found.metrics and "score" in found.metrics
        ]
        return max(scored)[1] if scored else self.latest()

    def progress(self, step: int) -> dict[str, Any] | None:
        """How the validation score had gone by a step; None where its checkpoint does not know."""
        try:
            stored = (self._orbax.metadata(step).custom_metadata or {}).get("progress")
            return None if stored is None else json.loads(stored)
        except (ValueError, OSError, KeyError):
            return None  # `restore` names the damage

    def restore(
        self, step: int, like: Any, devices: parallel.Devices = 1
    ) -> tuple[Any, dict[str, Any]]:
        """The state (with the tree, shapes and dtypes of `like`) and the iterator's state.

        It comes as `parallel.replicate` takes it: on one device, or laid out on the mesh.
        """
        abstract = parallel.abstract(like, devices)
        why = self._foreign(step, like, shapes_only=True)
        if not why:
            try:
                state = self._orbax.load_checkpointables(step, {"state": abstract})["state"]
                metadata = self._orbax.metadata(step).custom_metadata
                if metadata:
                    return state, json.loads(metadata["iterator"])
                why = "it is damaged (what was saved beside the state is gone)"
            except (ValueError, OSError, KeyError) as error:
                why = self._foreign(step, like) or f"it is damaged ({_cause(error)[:120]})"
            _forget_readers()
        offer, others = "no other step is there", [n for n in self.steps() if n != step]
        if others:
            offer = f"remove {self.folder / str(step)} to go on without it; others: {others}"
        raise ConfigError(
            f"--workdir: checkpoint {step} in {self.folder} cannot be read: {why}; {offer}"
        )

    def _foreign(self, step: int, like: Any, shapes_only: bool = False) -> str:
        """Where it is not such a state, if anywhere that can be seen."""
        if step not in self.steps():
            return "no such step"
        try:
            stored = _shapes(self._orbax.checkpointables_metadata(step).metadata["state"])
        except (ValueError, OSError, KeyError):
            return ""
        wanted = _shapes(like)
        paths = [path for path in {**wanted, **stored} if stored.get(path) != wanted.get(path)]
        if shapes_only:
            paths = [path for path in paths if path in stored and path in wanted]
        if not stored or not paths:
            return ""
        kept, asked = (of.get(paths[0], "missing") for of in (stored, wanted))
        more = f" and {len(paths) - 1} more differ" if len(paths) > 1 else ""
        return f"it is of another model: {paths[0]} is {kept} there, {asked} here{more}"

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        done = [int(p.name) for p in self.folder.glob("*") if p.name.isdigit()]
        then = "Make room, and the same command begins anew"
        if done:
            then = f"Make room, and the same command goes on from step {max(done)}"
        with writing(self.folder, then):
            yield

    def wait(self) -> None:
        with self._writing():
            self._orbax.wait()

    def close(self) -> None:
        """Waits for what is being written."""
        self._orbax.close()


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """`{path: shape}`, with one name for a field, a key and an index; random keys left out."""

    def is_array(x: Any) -> bool:
        return hasattr(x, "shape")

    def name(key: Any) -> str:
        return str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key))))

    return {
        "/".join(map(name, path)): tuple(leaf.shape)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_array)
        if is_array(leaf) and not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    }


def _cause(error: BaseException) -> str:
    """What is at the bottom of it: Orbax's own words are about handlers."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).splitlines()[0]


def _forget_readers() -> None:
    """Drops what a failed reading left half done; it would complain in many lines, at any time."""
    told, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        gc.collect()
    finally:
        sys.unraisablehook = told
