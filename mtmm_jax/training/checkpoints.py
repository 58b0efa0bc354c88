"""Checkpoints by Orbax: asynchronous, the last ones and the best one kept, exact to the example.

A sharded state is written as it lies, by all processes, and read to any layout: what one device
saved a mesh goes on with, and the other way round.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from orbax.checkpoint import v1 as ocp

from mtmm_jax import parallel
from mtmm_jax.registry import ConfigError

_policies = ocp.training.preservation_policies
_copied = jax.jit(lambda state: jax.tree.map(jnp.copy, state))


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

    def save(self, state: Any, score: float | None, iterator: dict[str, Any]) -> None:
        """Begins to save; returns while the writing goes on."""
        step = int(jax.device_get(state.step))
        if self.latest() == step:
            return
        # The next steps are given this state's buffers to write into while it is being saved.
        state = _copied(state)
        with jax.transfer_guard_device_to_host("allow"):
            self._orbax.save_checkpointables_async(
                step,
                {"state": state},
                force=True,
                metrics=None if score is None else {"score": float(score)},
                custom_metadata={"iterator": json.dumps(iterator), "score": score},
            )

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

    def restore(
        self, step: int, like: Any, devices: parallel.Devices = 1
    ) -> tuple[Any, dict[str, Any]]:
        """The state (with the tree, shapes and dtypes of `like`) and the iterator's state.

        It comes as `parallel.replicate` takes it: on one device, or laid out on the mesh.
        """
        abstract = parallel.abstract(like, devices)
        try:
            state = self._orbax.load_checkpointables(step, {"state": abstract})["state"]
            metadata = self._orbax.metadata(step).custom_metadata
        except (ValueError, OSError, KeyError) as error:
            others = sorted(found.step for found in self._orbax.checkpoints if found.step != step)
            raise ConfigError(
                f"--workdir: checkpoint {step} in {self.folder} cannot be read: "
                f"{str(error).splitlines()[0]}. Other steps there: {others or 'none'}"
            ) from error
        return state, json.loads(metadata["iterator"])

    def wait(self) -> None:
        self._orbax.wait()

    def close(self) -> None:
        """Waits for what is being written."""
        self._orbax.close()
