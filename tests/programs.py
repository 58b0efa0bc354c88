"""Counts what each test file costs: programs, compile time, wall time and the worker's memory.

    pytest -p tests.programs --programs programs.json

A program is one executable that XLA hands to jax in this process, compiled or read from the cache;
`compiled` counts the ones that the cache did not have. Processes that a test starts are not seen.
"""

import json
import resource
import time
from collections import defaultdict
from pathlib import Path

import pytest

_PROGRAM = "/jax/core/compile/backend_compile_duration"
_TRACE = "/jax/core/compile/jaxpr_trace_duration"
_MISS = "/jax/compilation_cache/cache_misses"


def pytest_addoption(parser):
    parser.addoption("--programs", help="JSON file that receives the counts per test file")


def pytest_configure(config):
    if config.getoption("--programs"):
        config.pluginmanager.register(_Counter(config), "programs-counter")


class _Counter:
    def __init__(self, config):
        self.target = Path(config.getoption("--programs")).resolve()
        self.worker = getattr(config, "workerinput", {}).get("workerid", "")
        self.is_controller = not self.worker and bool(config.getoption("numprocesses", None))
        self.counts = defaultdict(lambda: defaultdict(float))
        self.file = None
        if not self.is_controller:
            from jax import monitoring

            monitoring.register_event_duration_secs_listener(self._duration)
            monitoring.register_event_listener(self._event)

    def _duration(self, event, seconds, **_):
        if event == _PROGRAM:
            self._add("programs", 1)
            self._add("compile_s", seconds)
        elif event == _TRACE:
            self._add("trace_s", seconds)

    def _event(self, event, **_):
        if event == _MISS:
            self._add("compiled", 1)

    def _add(self, name, value):
        if self.file is not None:
            self.counts[self.file][name] += value

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item):
        self.file = item.location[0]
        start = time.perf_counter()
        try:
            return (yield)
        finally:
            self._add("tests", 1)
            self._add("wall_s", time.perf_counter() - start)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            self.counts[self.file]["peak_gb"] = peak

    def pytest_sessionfinish(self):
        part = self.target.with_suffix(f".{self.worker or 'all'}.json")
        if not self.is_controller:
            part.write_text(json.dumps(self.counts))
        if not self.worker:
            files = {}
            for path in sorted(self.target.parent.glob(f"{self.target.stem}.*.json")):
                files.update(json.loads(path.read_text()))
                path.unlink()
            total = {
                name: (max if name == "peak_gb" else sum)(f.get(name, 0) for f in files.values())
                for name in (
                    "tests",
                    "programs",
                    "compiled",
                    "compile_s",
                    "trace_s",
                    "wall_s",
                    "peak_gb",
                )
            }
            rounded = {
                file: {name: round(value, 2) for name, value in counts.items()}
                for file, counts in sorted(files.items(), key=lambda f: -f[1]["wall_s"])
            }
            self.target.write_text(json.dumps({"total": total, "files": rounded}, indent=1) + "\n")
