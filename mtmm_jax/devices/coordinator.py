"""One line on stderr where the first of several processes, which coordinates them, is gone."""

from __future__ import annotations

import ctypes
import os
import signal
import socket

_SECONDS = 2.0  # for a coordinator to accept a connection
_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int)
_kept: list[object] = []  # what C calls must not be collected


def name_when_gone(address: str, process: int) -> None:
    """Ends this process with a line that names process 0 when JAX aborts it for its loss.

    JAX's client aborts from a thread of C++ as soon as the connection breaks: no exception comes
    out, and a Python callback for it ends in `std::bad_cast` (jaxlib 0.10 and 0.12). Python's own
    signal handlers run too late, so this one is set in C.

    Args:
        address: "host:port" of the coordinator.
        process: this one's number.
    """
    if process == 0 or os.name != "posix":
        return
    host, _, port = address.rpartition(":")

    def aborted(number: int) -> None:
        del number
        if _answers(host, int(port)):
            return  # of another reason: the abort continues
        line = (
            f"error: process {process}: process 0, which coordinates the others, is gone. "
            "The same command resumes from the last checkpoint\n"
        )
        os.write(2, line.encode())
        os._exit(1)

    handler = _HANDLER(aborted)
    _kept.append(handler)
    libc = ctypes.CDLL(None)
    libc.signal.argtypes, libc.signal.restype = [ctypes.c_int, _HANDLER], ctypes.c_void_p
    libc.signal(signal.SIGABRT, handler)


def _answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host.strip("[]"), port), _SECONDS).close()
    except OSError:
        return False
    return True
