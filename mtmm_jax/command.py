"""Shared parts of the commands: one-line errors, exit codes, JAX set up before its import."""

from __future__ import annotations

import functools
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any


def prepare_jax() -> None:
    """Compiler flags, malloc and the persistent compile cache (`MTMM_JAX_CACHE`, empty: off).

    Nothing is kept where one CPU stands for several devices: XLA has ended the process while it
    wrote such a program, and while it read one back.
    """
    from mtmm_jax.devices import parallel

    parallel.set_cpu_flags()
    parallel.keep_freed_memory()
    import jax

    default = Path.home() / ".cache" / "mtmm_jax" / "compiled"
    folder = os.environ.get("MTMM_JAX_CACHE", str(default))
    forced = "--xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if folder and not forced and jax.config.jax_num_cpu_devices <= 1:
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def trust_option(parser: Any) -> None:
    """The option of commands that open the data of a finished run."""
    parser.add_argument(
        "--trust_paths",
        action="store_true",
        default=None,
        help="follow the paths in the config of a run that somebody else made",
    )


def console() -> Any:
    """Wide enough for the tables where the output is no terminal.

    Text is printed as it is: names of tasks and classes are data, and "[red]" no colour.
    """
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 120, markup=False, emoji=False)


def guarded(main: Callable[..., int]) -> Callable[..., int]:
    """Turns what a user can mend into one line on stderr and exit code 2; no traceback, unless
    `MTMM_JAX_TRACEBACK` is set."""

    @functools.wraps(main)
    def run(*args: Any, **kwargs: Any) -> int:
        from mtmm_jax.registry import ConfigError, one_line

        try:
            return main(*args, **kwargs)
        except ConfigError as error:
            if os.environ.get("MTMM_JAX_TRACEBACK"):
                traceback.print_exc()
            print(f"error: {one_line(error)}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            return 130
        except OSError as error:
            from mtmm_jax.store.files import disk_error

            if not disk_error(error) or os.environ.get("MTMM_JAX_TRACEBACK"):
                raise
            where = f"cannot write {one_line(error.filename or 'a file of this command')}"
            fix = "make room or choose another place, and give the same command again"
            print(f"error: {where}: {disk_error(error)}; {fix}", file=sys.stderr)
            return 2
        except Exception as error:
            if type(error).__name__ != "Interrupted":
                raise
            print(f"{error}; the same command resumes from there", file=sys.stderr)
            return 128 + error.signal

    return run
