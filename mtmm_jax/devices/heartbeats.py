"""Who of several processes is alive, and one line on stderr where JAX aborts one of them."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import signal
import socket
import threading
import time
from typing import Any

from jax._src import distributed  # JAX has no other name for its coordinator

SILENT = 2.0
"""Seconds after which a process that wrote nothing is taken for stopped or gone."""
_LOOK = 5.0  # seconds between two looks at the others
_CONNECT = 2.0  # seconds for a coordinator to accept a connection
_FOLDER = "mtmm_jax/alive"
_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int)
_kept: list[object] = []  # what C calls must not be collected


class Heartbeats:
    """Heartbeats of all processes, through JAX's coordinator.

    Attributes:
        steps: how far this process is; what moves things counts it up.
        last: the silent processes, in words, when it was last looked.
    """

    def __init__(self) -> None:
        self.steps = 0
        self.last = ""
        self._thread: threading.Thread | None = None
        self._over = threading.Event()

    def start(self) -> None:
        """Lets this process be heard, and hear the others, until it ends."""
        if self._thread is None and (_joined().num_processes or 1) > 1:
            self._thread = threading.Thread(target=self._run, name="heartbeats", daemon=True)
            self._thread.start()
            atexit.register(self._stop)  # before JAX leaves the others

    def _run(self) -> None:
        looked = time.monotonic()
        while True:
            self._speak()
            if time.monotonic() - looked > _LOOK:
                self.last, looked = self.silent(), time.monotonic()
            if self._over.wait(SILENT / 4):
                return

    def _stop(self) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join(SILENT)

    def _speak(self) -> None:
        with contextlib.suppress(Exception):  # no coordinator any more: the others find out
            beat = f"{time.time()} {self.steps}"
            name = f"{_FOLDER}/{_joined().process_id}"
            _joined().client.key_value_set(name, beat, allow_overwrite=True)

    def silent(self) -> str:
        """The silent processes, in words; empty if none is."""
        found = self._found()
        if found is None:
            return "process 0, which coordinates the others, does not answer"
        silent = [i for i, (age, _) in found.items() if age > SILENT and i != _joined().process_id]
        if not silent:
            return ""
        names = ", ".join(map(str, silent))
        return f"process {names} is stopped or gone: silent for {found[silent[0]][0]:.0f} s"

    def silent_soon(self) -> str:
        """The silent processes, by when one that ended just now is among them."""
        self.start()
        time.sleep(2 * SILENT)
        return self.silent()

    def behind(self) -> str:
        """The silent processes, or else the one furthest behind; empty if none is."""
        if words := self.silent():
            return words
        steps = {i: count for i, (_, count) in (self._found() or {}).items()}
        last = min(steps, key=steps.__getitem__, default=0)
        if steps and steps[last] < max(steps.values()):
            return f"process {last} is behind: {steps[last]} steps, others {max(steps.values())}"
        return ""

    def _found(self) -> dict[int, tuple[float, int]] | None:
        """`{process: (seconds since it wrote, steps)}`; None where the coordinator is silent."""
        found: dict[int, tuple[float, int]] = {}

        def read() -> None:
            with contextlib.suppress(Exception):  # the coordinator is gone, or nobody wrote yet
                for name, value in _joined().client.key_value_dir_get(_FOLDER):
                    stamp, steps = value.split()
                    found[int(name.rpartition("/")[2])] = (time.time() - float(stamp), int(steps))

        reading = threading.Thread(target=read, daemon=True)
        reading.start()
        reading.join(SILENT)
        return None if reading.is_alive() else dict(sorted(found.items()))


HEARTBEATS = Heartbeats()
"""This process's heartbeats: it has one coordinator."""


def _joined() -> Any:
    """JAX's coordinator as this process knows it: client, process_id, num_processes."""
    return distributed.global_state


def name_the_lost() -> None:
    """Ends this process with a line that names the lost one when JAX aborts it for the loss.

    JAX's client aborts from a thread of C++ as soon as the connection to process 0 breaks, or when
    process 0 has missed another one's heartbeats for too long: no exception comes out, and a Python
    callback for it ends in `std::bad_cast` (jaxlib 0.10 and 0.12). Python's own signal handlers run
    too late, so this one is set in C. It does not use the client, which is locked then.
    """
    address, process = _joined().coordinator_address, _joined().process_id
    if address is None or os.name != "posix":
        return
    host, _, port = address.rpartition(":")

    def aborted(number: int) -> None:
        del number
        gone = HEARTBEATS.last
        if not gone and process != 0 and not _answers(host, int(port)):
            gone = "process 0, which coordinates the others, is gone"
        if not gone:
            return  # of another reason: the abort continues
        again = "The same command resumes from the last checkpoint"
        os.write(2, f"error: process {process}: {gone}. {again}\n".encode())
        os._exit(1)

    handler = _HANDLER(aborted)
    _kept.append(handler)
    libc = ctypes.CDLL(None)
    libc.signal.argtypes, libc.signal.restype = [ctypes.c_int, _HANDLER], ctypes.c_void_p
    libc.signal(signal.SIGABRT, handler)


def _answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host.strip("[]"), port), _CONNECT).close()
    except OSError:
        return False
    return True
