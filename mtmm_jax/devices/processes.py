"""Several processes that train one model: start-up, work of the first process, a common end."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import faulthandler
import itertools
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from mtmm_jax.devices.heartbeats import HEARTBEATS, name_the_lost
from mtmm_jax.ranges import Count
from mtmm_jax.registry import ConfigError, check

_MEETINGS = itertools.count()  # a barrier's name is used once

HUNG = 75  # the exit code of a process that gave up waiting: the same command may resume from there


def _more_than_one(name: str) -> Callable[[Mapping[str, str]], bool]:
    return lambda env: env.get(name, "").isdigit() and int(env[name]) > 1


LAUNCHERS: dict[str, Callable[[Mapping[str, str]], bool]] = {
    "SLURM": _more_than_one("SLURM_STEP_NUM_TASKS"),
    "Open MPI": _more_than_one("OMPI_COMM_WORLD_SIZE"),
    "Cloud TPU": lambda env: "," in env.get("TPU_WORKER_HOSTNAMES", ""),
    "Cloud TPU slices": _more_than_one("MEGASCALE_NUM_SLICES"),
}
"""Launchers that start one process a host, or a device, by the marks they leave in the environment.
Kubernetes leaves none that tells one job of several pods from several jobs."""


def options(parser: argparse.ArgumentParser) -> None:
    """The commands' options, as `initialize` takes them."""
    group = parser.add_argument_group("several processes", "only where no launcher tells it")
    group.add_argument("--coordinator", metavar="HOST:PORT", help="of the first process, or auto")
    group.add_argument("--processes", type=int, metavar="N", help="how many there are")
    group.add_argument("--process", type=int, metavar="I", help="this one's number, from 0")


def initialize(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    *,
    heartbeat: int = 100,
) -> None:
    """Joins the processes that train together; call it before anything is computed.

    Without arguments: `jax.distributed` finds the others where one of `LAUNCHERS` started this
    process, and nothing happens elsewhere. The same command runs in all processes, `devices` is
    `"all"` or a mesh, and the workdir is on a file system that all of them see.

    SLURM, a process for each GPU (or `--ntasks-per-node=1` for one a host)::

        #SBATCH --nodes=4 --ntasks-per-node=8 --gpus-per-node=8
        srun python -m mtmm_jax.train --config emoji --workdir runs/emoji \\
          --config.devices='{"kind": "mesh", "data": 4, "fsdp": 8}'

    Cloud TPU, on every host of a slice::

        gcloud compute tpus tpu-vm ssh NAME --worker=all --command="python -m mtmm_jax.train \\
          --coordinator auto --config emoji --workdir /shared/emoji --config.devices=all"

    GKE: a JobSet with a TPU node selector needs no flags; of an indexed Job with GPUs, the
    container's command, `HOST` being the first pod's name in a headless service::

        python -m mtmm_jax.train ... --coordinator HOST:1234 --processes 4 \\
          --process $JOB_COMPLETION_INDEX

    By hand, the same with `--process 0` on the first machine, `--process 1` on the second, ...

    Args:
        coordinator: "host:port" of the first process, or "auto" to let `jax.distributed` look for a
            cluster by all means it has (metadata servers, the Kubernetes API).
        processes: how many there are; 1 for a process by itself in spite of the launcher.
        process: this one's number, from 0.
        heartbeat: seconds of silence after which a process counts as dead, and the others end.
    """
    if processes is not None:
        check(processes, Count, "--processes")
    if process is not None and not 0 <= process < (processes or process + 1):
        raise ConfigError(f"--process: {process} is not a number from 0 to {processes - 1}")
    launcher = next((name for name, is_here in LAUNCHERS.items() if is_here(os.environ)), None)
    if processes == 1 or (coordinator is launcher is None and processes is process is None):
        return
    address = None if coordinator == "auto" else coordinator
    if address is not None and not address.rpartition(":")[2].isdigit():
        raise ConfigError(f"--coordinator: {address!r} is not HOST:PORT, nor 'auto'")
    known = None not in (address, processes, process)
    try:
        jax.distributed.initialize(
            address,
            processes,
            process,
            cluster_detection_method="deactivate" if known else None,
            heartbeat_timeout_seconds=heartbeat,
            shutdown_timeout_seconds=heartbeat,
        )
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"--coordinator {coordinator} --processes {processes} --process {process}: {error} "
            f"Give all three, or start by: {', '.join(LAUNCHERS)}"
        ) from error
    HEARTBEATS.start()
    name_the_lost()


def is_primary() -> bool:
    """Whether this is the process that writes logs, reports and the config."""
    return jax.process_index() == 0


def broadcast_from_first(value: int) -> int:
    """The first process's number, on all of them."""
    if jax.process_count() == 1:
        return value
    with jax.transfer_guard_device_to_host("allow"):
        return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def largest(value: int) -> int:
    """The largest of all processes' numbers, on all of them."""
    if jax.process_count() == 1:
        return value
    with jax.transfer_guard_device_to_host("allow"):
        return int(np.max(multihost_utils.process_allgather(np.int32(value))))


def on_primary(work: Callable[[], None], where: str) -> None:
    """Does `work` on the first process while the others wait; what it refuses, all refuse."""
    refused: ConfigError | None = None
    if is_primary():
        try:
            work()
        except ConfigError as error:
            refused = error
    _meet(where)
    if broadcast_from_first(refused is not None):
        raise refused or ConfigError(f"{where}: refused; the first process says why")


def _meet(name: str, seconds: int = 3600) -> None:
    """Waits for all processes, not in a collective: those of CPUs give up after half a minute."""
    if jax.process_count() > 1:
        from orbax.checkpoint import multihost  # slow to import

        key = f"mtmm_jax: {name} {next(_MEETINGS)}"
        multihost.get_barrier_sync_fn()(key=key, timeout_ms=1000 * seconds)


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Ends one of several processes at once where an error comes out, rather than in good order,
    which would mean to wait for the others: they wait for this one, or are gone.

    `ConfigError` and `Interrupted` pass: all processes see them.
    """
    try:
        HEARTBEATS.start()
        yield
    except (ConfigError, Interrupted):
        raise
    except Exception as error:
        if jax.process_count() == 1:
            raise
        if gone := _without_heartbeats(error) or HEARTBEATS.silent_soon():
            reason = " ".join(str(error).split())[:200]
            print(
                f"error: process {jax.process_index()}: {gone}: {type(error).__name__}: {reason}. "
                "The same command resumes from the last checkpoint",
                file=sys.stderr,
            )
        else:
            traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


def _without_heartbeats(error: Exception) -> str:
    """The process that the coordinator gave up, as a barrier reports it; JAX aborts soon after."""
    found = re.search(r"[Tt]ask (\d+) heartbeat timeout", str(error))
    return f"process {found[1]} is stopped or gone: it sent no heartbeats" if found else ""


@contextlib.contextmanager
def watched(seconds: float | None) -> Iterator[Callable[[], None]]:
    """Gives a function to call whenever something moves; without a call in `seconds`, one of
    several processes says where it stands and ends with exit code `HUNG`.

    A dead process is found by its missing heartbeats. One that hangs, in reading data for
    instance, still has them, and the others would wait in a collective for ever.
    """
    moved, steps = [time.monotonic()], itertools.count(1)

    def beat() -> None:
        moved[:] = [time.monotonic()]
        HEARTBEATS.steps = next(steps)

    if jax.process_count() == 1:
        yield beat
        return
    over = threading.Event()

    def look(limit: float) -> None:
        while not over.wait(min(limit / 4, 5.0)):
            if time.monotonic() - moved[0] > limit:
                faulthandler.dump_traceback(sys.stderr)
                reason = HEARTBEATS.behind() or "another process may hang"
                print(
                    f"error: process {jax.process_index()}: no step in {limit:g} s "
                    f"(devices.timeout); {reason}. "
                    "The same command resumes from the last checkpoint",
                    file=sys.stderr,
                    flush=True,
                )
                os._exit(HUNG)

    HEARTBEATS.start()
    if seconds is not None:
        threading.Thread(target=look, args=(seconds,), name="look", daemon=True).start()
    try:
        yield beat
    finally:
        over.set()


class Interrupted(Exception):
    """The run was stopped by a signal, and has saved. `signal` says by what."""

    def __init__(self, number: int, step: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name} after step {step}")
        self.signal, self.step = number, step


@dataclasses.dataclass
class Stop:
    """Set by SIGINT or SIGTERM; training looks at it between steps.

    One of several processes may get the signal, and all must stop after the same step: they ask
    each other whenever they log.
    """

    signal: int = 0
    _agreed: int = 0

    def agree(self) -> None:
        """Called by all processes after the same step."""
        self._agreed = largest(self.signal)

    @property
    def agreed(self) -> int:
        """The signal to stop by now, or 0."""
        return self._agreed if jax.process_count() > 1 else self.signal


@contextlib.contextmanager
def listening() -> Iterator[Stop]:
    """Notes SIGINT and SIGTERM instead of ending at once, in the main thread."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def note(number: int, frame: Any) -> None:
        del frame
        if stop.signal:  # asked twice: do not insist on saving
            raise KeyboardInterrupt
        stop.signal = number

    old = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
