"""The runs of a sweep: one after the other in this process, or several processes side by side."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from mtmm_jax.devices import machine
from mtmm_jax.registry import ConfigError
from mtmm_jax.runs.plans import Trial, config_of
from mtmm_jax.training.experiment import Experiment, assemble

_MEMORY = 0.9  # of a device, shared by the processes on it
_ASK = "import jax; print(jax.default_backend(), jax.local_device_count())"

Fit = Callable[[Experiment, Path], Any]
Record = Callable[[Trial, str | None], None]


def finished(folder: Path, trial: Trial) -> bool:
    return (folder / trial.name / "results.json").exists()


def run_in_turn(
    folder: Path, config: Mapping[str, Any], trials: Sequence[Trial], fit: Fit, record: Record
) -> None:
    """Trains trials one after the other in this process.

    Args:
        folder: of the sweep; a trial's run is `folder/name`, what it prints `folder/name.log`.
        config: of all trials, before their own values.
        trials: those to run.
        fit: trains an experiment in a folder.
        record: called at each trial's end with the reason of its failure, or None.
    """
    for trial in trials:
        reason = None
        with (folder / f"{trial.name}.log").open("a") as log:
            try:
                with contextlib.redirect_stdout(_Steps(log, sys.stdout)):
                    fit(assemble(config_of(config, trial)), folder / trial.name)
            except ConfigError as error:
                reason = str(error)
                log.write(f"error: {reason}\n")
        record(trial, reason)
        jax.clear_caches()  # compiled programs of this trial, which no other one runs


class _Steps(io.TextIOBase):
    """Writes everything to a log, and the lines about steps also where a person looks.

    The tables at the end are left to the log: they hold the test split, by which nothing is chosen.
    """

    def __init__(self, log: Any, shown: Any) -> None:
        self._log, self._shown, self._line = log, shown, ""

    def write(self, text: str) -> int:
        self._log.write(text)
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            if line.startswith(("step ", "resuming from")):
                self._shown.write(f"  {line}\n")
        return len(text)

    def flush(self) -> None:
        for file in (self._log, self._shown):
            if not file.closed:  # collected after its log, it is flushed once more
                file.flush()


def devices_here() -> tuple[str, int]:
    """The backend and its number of devices, found by a process of its own: one that has asked
    holds the devices."""
    done = subprocess.run([sys.executable, "-c", _ASK], capture_output=True, text=True)
    if done.returncode:
        raise ConfigError(f"--parallel: JAX finds no devices: {done.stderr.strip()[-300:]}")
    backend, count = done.stdout.split()[-2:]
    return backend, int(count)


def places(
    count: int, backend: str, devices: int, cores: Sequence[int], visible: str | None = None
) -> list[tuple[dict[str, str], set[int]]]:
    """For each of `count` processes: the environment and the CPU cores that make up its share.

    Accelerators go round: with fewer of them than processes, those on one share its memory. On
    CPUs the cores are divided.

    Args:
        count: how many processes.
        backend: JAX's name of the devices.
        devices: how many there are.
        cores: the CPU cores there are.
        visible: which GPUs this process may use, as CUDA_VISIBLE_DEVICES says it.
    """
    if backend == "tpu" and count > devices:
        raise ConfigError(
            f"--parallel: {count} processes for {devices} TPU chips; each needs its own"
        )
    names = visible.split(",") if visible else [str(i) for i in range(devices)]
    found = []
    for i in range(count):
        own = {cores[j] for j in range(len(cores)) if j * count // len(cores) == i}
        own = own or {cores[i % len(cores)]}
        environment = {"NPROC": str(len(own))}  # XLA's number of threads
        if backend == "gpu":
            device = names[i % devices]
            environment |= {"CUDA_VISIBLE_DEVICES": device, "HIP_VISIBLE_DEVICES": device}
            if count > devices:
                share = _MEMORY / math.ceil(count / devices)
                environment["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{share:.2f}"
        elif backend == "tpu":
            environment |= {"TPU_VISIBLE_CHIPS": str(i)}
            environment |= dict.fromkeys(
                ("TPU_CHIPS_PER_PROCESS_BOUNDS", "TPU_PROCESS_BOUNDS"), "1,1,1"
            )
        found.append((environment, own))
    return found


def run_side_by_side(
    folder: Path, config: Mapping[str, Any], trials: Sequence[Trial], count: int, record: Record
) -> None:
    """Trains trials in `count` processes of the training command at a time, a device for each.

    Stopped, it asks them to save and waits for them. Arguments as in `run_in_turn`.
    """
    free = places(
        count, *devices_here(), machine.cores(), os.environ.get("CUDA_VISIBLE_DEVICES") or None
    )
    base = folder / "config.py"
    base.write_text(_CONFIG.format(json.dumps(config, indent=1)))
    waiting = list(trials)
    running: dict[subprocess.Popen, tuple[Trial, Any]] = {}
    with _asked_to_stop():
        try:
            while waiting or running:
                while waiting and free:
                    place = free.pop(0)
                    trial = waiting.pop(0)
                    running[_start(folder, base, trial, *place)] = trial, place
                time.sleep(0.1)
                for process in [p for p in running if p.poll() is not None]:
                    trial, place = running.pop(process)
                    free.append(place)
                    record(trial, _failure(process.returncode, folder / f"{trial.name}.log"))
        except KeyboardInterrupt:
            print("stopped; the same command resumes from there", file=sys.stderr)
            raise
        finally:
            for process in running:
                process.terminate()
            for process in running:
                process.wait()


# The config as it stands, whatever becomes of the file that it was read from.
_CONFIG = '''"""The values that all trials of this sweep share."""

import json

from ml_collections import ConfigDict

SHARED = r"""
{}
"""


def get_config() -> ConfigDict:
    return ConfigDict(json.loads(SHARED))
'''


def _start(
    folder: Path, base: Path, trial: Trial, environment: dict[str, str], cores: set[int]
) -> subprocess.Popen:
    command = [sys.executable, "-m", "mtmm_jax.train", "--config", str(base), "--workdir"]
    with (folder / f"{trial.name}.log").open("a") as log:
        process = subprocess.Popen(
            [*command, str(folder / trial.name), *trial.overrides],
            stdout=log,
            stderr=log,
            env={**os.environ, **environment},
            start_new_session=True,  # a key that stops this process stops them through it, once
        )
    if hasattr(os, "sched_setaffinity"):
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(process.pid, cores)
    return process


def _failure(code: int, log: Path) -> str | None:
    """The reason why a process stopped early: the error that it printed, or where to look."""
    if code == 0:
        return None
    errors = [line for line in log.read_text().splitlines() if line.startswith("error: ")]
    if code == 2 and errors:
        return errors[-1].removeprefix("error: ")
    return f"ended with exit code {code}; see {log}"


@contextlib.contextmanager
def _asked_to_stop() -> Iterator[None]:
    """Handle SIGTERM as Ctrl-C, so that running trials are stopped, too."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    old = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, old)
