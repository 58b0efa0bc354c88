"""Checkpoints by Orbax: asynchronous, the last ones and the best one kept, exact to the example.

A sharded state is written as it lies, by all processes, and read to any layout: what one device
saved a mesh restores, and the other way round.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import json
import logging
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from orbax.checkpoint import v1 as ocp

from mtmm_jax.devices import parallel, processes
from mtmm_jax.registry import ConfigError
from mtmm_jax.store import digests, files
from mtmm_jax.store.files import writing
from mtmm_jax.store.workdir import Workdir

_UNREADABLE = (ValueError, OSError, KeyError, TypeError, AttributeError, RecursionError)
"""What reading metadata raises that are not what was written."""
_policies = ocp.training.preservation_policies
_copied = jax.jit(lambda state: jax.tree.map(jnp.copy, state))


def _tells_more(record: logging.LogRecord) -> bool:
    """Not what Orbax's threads log of an error that comes out of `save`, `wait` and `restore`."""
    words = (
        "_SignalingThread.run() raised",
        "Task exception was never retrieved",
        "Failed to run",
        "Save Finalize thread",
    )
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
    checkpoints = Checkpoints(workdir.checkpoints)
    named = {"best": checkpoints.best, "last": checkpoints.latest}
    found = named[step]() if step in named else step
    if found is None:
        raise ConfigError(f"{where}: {workdir.path} has no checkpoint yet")
    if found not in checkpoints.steps():
        kept = ", ".join(map(str, checkpoints.steps())) or "none"
        raise ConfigError(f"{where}: step {step!r} is not kept; there are: {kept}")
    return found, checkpoints.restore(found, like, devices)[0]


class Checkpoints:
    """The checkpoints of one run. Reading them changes nothing in their folder.

    Args:
        folder: where they are.
        keep: how many of the latest stay; the best by the validation score stays besides.
    """

    def __init__(self, folder: Path, keep: int = 1) -> None:
        self.folder, self._keep = folder, keep
        self._hasher = digests.Hasher(folder)
        self._saved: int | None = None

    @functools.cached_property
    def _orbax(self) -> Any:
        """The writer; it removes what a killed process left half written."""
        best = _policies.BestN(
            get_metric_fn=lambda metrics: metrics["score"],
            n=1,
            keep_checkpoints_without_metrics=False,
        )
        latest = _policies.LatestN(self._keep)
        try:
            return ocp.training.Checkpointer(
                self.folder.absolute(),
                preservation_policy=_policies.AnyPreservationPolicy([latest, best]),
                cleanup_tmp_directories=True,
            )
        except _UNREADABLE as error:  # of the metadata of one of them
            raise ConfigError(
                f"--workdir: a checkpoint in {self.folder} has damaged metadata "
                f"({_cause(error)[:120]}); remove it to resume; there are: {self.steps()}"
            ) from error

    def save(
        self,
        state: Any,
        score: float | None,
        iterator: dict[str, Any],
        progress: dict[str, Any] | None = None,
    ) -> None:
        """Begins to save; returns while the writing continues.

        Args:
            state: of the training.
            score: of the validation at this step, if there was one.
            iterator: the state of the data.
            progress: how the validation score went so far, see `training.stopping`.
        """
        step = int(jax.device_get(state.step))
        if self._saved == step or self.latest() == step:
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
        self._saved = step
        if jax.process_index() == 0:
            self._hasher.expect(step, None if score is None else float(score))

    def steps(self) -> list[int]:
        """Those that are there, the earliest first."""
        if not self.folder.is_dir():
            return []
        return sorted(int(p.name) for p in self.folder.iterdir() if p.name.isdigit() and p.is_dir())

    def latest(self) -> int | None:
        return max(self.steps(), default=None)

    def best(self) -> int | None:
        """The step of the best validation score, or the latest where none was scored."""
        scores = {step: self._score(step) for step in self.steps()}
        scored = [(score, step) for step, score in scores.items() if score is not None]
        return max(scored)[1] if scored else self.latest()

    def _score(self, step: int) -> float | None:
        """From the digests, and where there are none from what Orbax wrote."""
        known = digests.read(self.folder, step)
        if known is None:
            path = self.folder / str(step) / "metrics" / "metrics"
            try:
                known = files.parse(files.read_bytes(path, limit=files.JSON_BYTES), path)
            except files.Damaged:
                return None
        score = known.get("score") if isinstance(known, dict) else None
        return float(score) if type(score) in (int, float) and score == score else None

    def resume(
        self, like: Any, devices: parallel.Devices, say: Callable[[str], Any]
    ) -> tuple[int, Any, dict[str, Any]]:
        """`(step, state, iterator's state)` of the latest checkpoint that can be read.

        One that is damaged is moved to `damaged/`, and the one before it is taken. The only one is
        refused instead.

        Args:
            like, devices: as `restore` takes them.
            say: prints a line.
        """
        while True:
            step = processes.broadcast_from_first(self.latest() or 0)
            why = digests.damage(self.folder, step) if processes.is_primary() else ""
            if not processes.broadcast_from_first(bool(why)) or len(self.steps()) == 1:
                return step, *self.restore(step, like, devices)
            processes.on_primary(functools.partial(self._set_aside, step, why, say), "--workdir")

    def _set_aside(self, step: int, why: str, say: Callable[[str], Any]) -> None:
        aside = self.folder / "damaged" / str(step)
        with self._writing():
            aside.parent.mkdir(exist_ok=True)
            shutil.rmtree(aside, ignore_errors=True)
            (self.folder / str(step)).replace(aside)
            digests.digest_file(self.folder, step).unlink(missing_ok=True)
        say(f"checkpoint {step} is damaged ({why}): moved to {aside}; going back to the one before")

    def check_small(self, say: Callable[[str], Any]) -> None:
        """Sets aside the checkpoints whose metadata are damaged: Orbax reads them all to save."""
        for step in self.steps()[:-1]:
            why = digests.damage(self.folder, step, most=2**20)
            if not why and not self._scored(step):
                why = "metrics/metrics cannot be read"
            if why:
                self._set_aside(step, why, say)

    def _scored(self, step: int) -> bool:
        """True if what Orbax wrote of the score, if anything, can be read."""
        path = self.folder / str(step) / "metrics" / "metrics"
        try:
            found = files.parse(files.read_bytes(path), path) if path.exists() else {"score": 0.0}
        except files.Damaged:
            return False
        return isinstance(found, dict) and isinstance(found.get("score"), int | float)

    def progress(self, step: int) -> dict[str, Any] | None:
        """The validation scores up to a step; None if its checkpoint has none."""
        place = (self.folder / str(step)).absolute()
        try:
            stored = (ocp.checkpointables_metadata(place).custom_metadata or {}).get("progress")
            return None if stored is None else json.loads(stored)
        except _UNREADABLE:
            return None  # `restore` names the damage

    def restore(
        self, step: int, like: Any, devices: parallel.Devices = 1
    ) -> tuple[Any, dict[str, Any]]:
        """The state (with the tree, shapes and dtypes of `like`) and the iterator's state.

        Every file is compared with its SHA-256 before. The state comes as `parallel.replicate`
        takes it: on one device, or laid out on the mesh.
        """
        why = "no such step" if step not in self.steps() else ""
        if not why and (found := digests.damage(self.folder, step)):
            why = f"it is damaged ({found})"
        abstract = parallel.abstract(like, devices)
        why = why or self._foreign(step, like, shapes_only=True)
        if not why:
            place = (self.folder / str(step)).absolute()
            try:
                state = ocp.load_checkpointables(place, {"state": abstract})["state"]
                metadata = ocp.checkpointables_metadata(place).custom_metadata
                if metadata:
                    return state, json.loads(metadata["iterator"])
                why = "it is damaged (what was saved next to the state is gone)"
            except Exception as error:  # Orbax and TensorStore raise many classes
                why = self._foreign(step, like) or f"it is damaged ({_cause(error)[:120]})"
            _forget_readers()
        offer, others = "no other step is there", [n for n in self.steps() if n != step]
        if others:
            offer = f"remove {self.folder / str(step)} to resume without it; others: {others}"
        raise ConfigError(
            f"--workdir: checkpoint {step} in {self.folder} cannot be read: {why}; {offer}"
        )

    def _foreign(self, step: int, like: Any, shapes_only: bool = False) -> str:
        """Where it is not such a state, if anywhere that can be seen."""
        place = (self.folder / str(step)).absolute()
        try:
            stored = _shapes(ocp.checkpointables_metadata(place).metadata["state"])
        except Exception:  # whatever it is, reading the state will say it
            return ""
        wanted = _shapes(like)
        paths = [path for path in {**wanted, **stored} if stored.get(path) != wanted.get(path)]
        if shapes_only:
            paths = [path for path in paths if path in stored and path in wanted]
        if not stored or not paths:
            return ""
        kept, built = (of.get(paths[0], "missing") for of in (stored, wanted))
        more = f" and {len(paths) - 1} more differ" if len(paths) > 1 else ""
        return f"it is of another model: {paths[0]} is {kept} there, {built} here{more}"

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        done = self.steps()
        then = "Make room, and the same command begins anew"
        if done:
            then = f"Make room, and the same command resumes from step {max(done)}"
        with writing(self.folder, then):
            yield

    def wait(self) -> None:
        if "_orbax" in self.__dict__:
            with self._writing():
                self._orbax.wait()
        self._hasher.wait()

    def close(self) -> None:
        """Waits for what is being written."""
        if "_orbax" in self.__dict__:
            with self._writing():
                self._orbax.close()
        self._hasher.wait()


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
    """The first error of a chain: Orbax's words are about handlers."""
    while error.__cause__ is not None:
        error = error.__cause__
    return files.reason(error)


def _forget_readers() -> None:
    """Drops what a failed reading left half done; it would complain in many lines, at any time."""
    previous, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        gc.collect()
    finally:
        sys.unraisablehook = previous
