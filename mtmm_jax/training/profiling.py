"""Profiling of a run: traces on demand, a step's parts, compilation."""

from __future__ import annotations

import dataclasses
import re
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from mtmm_jax.devices import processes
from mtmm_jax.registry import ConfigError

_TRACED = "/jax/core/compile/jaxpr_trace_duration"
_COMPILED = "/jax/core/compile/backend_compile_duration"
_CACHED = "/jax/compilation_cache/cache_hits"
SETTLED = 2  # steps of a run after which nothing should be traced again


@dataclasses.dataclass(frozen=True)
class Window:
    """The steps of a run that are profiled, both included."""

    first: int
    last: int

    @classmethod
    def of(cls, text: str, steps: int) -> Window:
        """From `steps=10:20`, checked against the steps of the run."""
        found = re.fullmatch(r"steps=(\d+):(\d+)", text.strip())
        if not found:
            raise ConfigError(f"--profile: {text!r}: needs steps=FIRST:LAST, such as steps=10:20")
        first, last = int(found[1]), int(found[2])
        if not 1 <= first <= last <= steps:
            raise ConfigError(
                f"--profile: {text!r}: needs 1 <= FIRST <= LAST <= {steps}, the steps of the run"
            )
        return cls(first, last)


class Compiles:
    """Counts what JAX traces and compiles while it is entered, by the name of the function."""

    def __init__(self) -> None:
        self.traced: list[str] = []
        self.trace_seconds = 0.0
        self.compile_seconds: Counter[str] = Counter()
        self.programs = self.cached = 0

    def __enter__(self) -> Compiles:
        jax.monitoring.register_event_duration_secs_listener(self._lasted)
        jax.monitoring.register_event_listener(self._happened)
        return self

    def __exit__(self, *exception: Any) -> None:
        jax.monitoring.unregister_event_duration_listener(self._lasted)
        jax.monitoring.unregister_event_listener(self._happened)

    def _lasted(self, event: str, seconds: float, *, fun_name: str = "?", **_: Any) -> None:
        name = re.sub(r"^\w+\((.*)\)$", r"\1", fun_name)  # jit(step), pmap(step)
        if event == _TRACED:
            self.traced.append(name)
            self.trace_seconds += seconds
        elif event == _COMPILED:
            self.programs += 1
            self.compile_seconds[name] += seconds

    def _happened(self, event: str, **_: Any) -> None:
        self.cached += event == _CACHED

    def report(self, shown: int = 3) -> str:
        """One line: programs, seconds, the longest compiles."""
        longest = ", ".join(
            f"{name} {seconds:.1f} s" for name, seconds in self.compile_seconds.most_common(shown)
        )
        return (
            f"compiled {self.programs} programs in {sum(self.compile_seconds.values()):.1f} s "
            f"({self.cached} from the cache) after {len(self.traced)} traces of "
            f"{self.trace_seconds:.1f} s; longest: {longest or 'none'}"
        )


class Meter:
    """Watches a run's steps: what each part of one takes, retraces, and a trace of some.

    Args:
        compiles: what is traced, entered by the caller.
        window: the steps to profile; None for none.
        folder: where the profile goes.
        say: called with each line for the user.
    """

    def __init__(
        self,
        compiles: Compiles,
        window: Window | None = None,
        folder: Path | None = None,
        say: Callable[[str], Any] = print,
    ) -> None:
        self._compiles, self._window, self._folder, self._say = compiles, window, folder, say
        self._host = 0.0
        self._began: tuple[int, float] | None = None
        self.step_seconds: float | None = None  # of the profiled steps, the device waited for

    def around(self, step: Callable[..., Any], start: int) -> Callable[..., Any]:
        """`step(state, batch)`, watched; the next one is step `start + 1` of the run."""
        number = start

        def watched(state: Any, batch: Any) -> Any:
            nonlocal number
            number += 1
            self._open(number, state)
            traced = len(self._compiles.traced)
            started = time.perf_counter()
            if self._began is None:
                out = step(state, batch)
            else:
                with jax.profiler.StepTraceAnnotation("train", step_num=number):
                    out = step(state, batch)
            self._host += time.perf_counter() - started
            if number > start + SETTLED and len(self._compiles.traced) > traced:
                self._warn(number, self._compiles.traced[traced:])
            self._close(number, out)
            return out

        return watched

    def metrics(self, seconds: float, steps: int, waited: float) -> dict[str, Any]:
        """For the journal: seconds a step by what they went to, and the most memory so far.

        `data` is waiting for the batch, `host` handing the step over, and `device` the rest, which
        is waiting for results. A CPU may compute while it takes the step: `host` has that too then.

        Args:
            seconds: since the last time.
            steps: done in them.
            waited: of them, for data.
        """
        host = min(self._host, max(seconds - waited, 0.0))
        self._host = 0.0
        parts = {"data": waited, "host": host, "device": max(seconds - waited - host, 0.0)}
        return {
            "step_seconds": {name: value / max(steps, 1) for name, value in parts.items()},
            "memory_mb": memory(),
        }

    def close(self) -> None:
        """Finishes a profile that the run ended in; returns the reason where there is none."""
        if self._began is not None:
            jax.profiler.stop_trace()
            self._tell(f"a profile that stops early, from step {self._began[0]},")
            self._began = None
        elif self._window is not None and self.step_seconds is None:
            first, last = self._window.first, self._window.last
            self._say(f"nothing profiled: steps {first} to {last} were done before")

    def _open(self, number: int, state: Any) -> None:
        window = self._window
        waiting = self._began is None and self.step_seconds is None
        if window is None or not waiting or not window.first <= number <= window.last:
            return
        jax.block_until_ready(state)
        jax.profiler.start_trace(str(self._folder))
        self._began = number, time.perf_counter()

    def _close(self, number: int, out: Any) -> None:
        if self._began is None or number < self._window.last:
            return
        jax.block_until_ready(out)
        first, started = self._began
        self.step_seconds = (time.perf_counter() - started) / (number - first + 1)
        jax.profiler.stop_trace()
        self._began = None
        self._tell(f"the profile of steps {first} to {number}, {self.step_seconds:.4f} s a step,")

    def _tell(self, what: str) -> None:
        if processes.is_primary():
            self._say(
                f"{what} is in {self._folder}: tensorboard --logdir {self._folder} (with xprof), "
                "or open its *.trace.json.gz at https://ui.perfetto.dev"
            )

    def _warn(self, number: int, again: list[str]) -> None:
        if processes.is_primary():
            times = Counter(self._compiles.traced)
            names = ", ".join(f"{name} ({times[name]} times so far)" for name in sorted(set(again)))
            self._say(
                f"step {number}: traced again: {names}; the batch has another shape or other "
                "modalities than those before"
            )


def memory() -> dict[str, float]:
    """The peak memory in MB: of the process, and of a device where the backend reports it."""
    megabytes = {}
    if sys.platform != "win32":
        import resource

        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        megabytes["host_peak"] = most / (1e6 if sys.platform == "darwin" else 1e3)
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [found["peak_bytes_in_use"] for found in stats if "peak_bytes_in_use" in found]
    if peaks:
        megabytes["device_peak"] = max(peaks) / 1e6
    return megabytes
