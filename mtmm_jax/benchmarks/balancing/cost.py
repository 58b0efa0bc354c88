"""Step time and memory of every balancing method and engine against the number of tasks.

    python -m mtmm_jax.benchmarks.balancing --quick --tasks 4 16 --methods cagrad upgrad
    python -m mtmm_jax.benchmarks.balancing --trunk mlp resnet --peers --json balancing.json

Rows: trunk ("solver" for the rule alone inside jit), tasks, method, engine, step_ms,
relative_to_equal (our own equal-weight step, timed in turns with it), extra_mb (over that step;
a peer's over the peer's equal-weight step), peer.

With --json the file is rewritten after each trunk and number of tasks, and what stands in it
already, measured with the same settings on the same machine, is not measured again.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from mtmm_jax import balancing
from mtmm_jax.benchmarks.balancing import models
from mtmm_jax.benchmarks.balancing.plot import plot
from mtmm_jax.benchmarks.balancing.steps import BATCH, FAMO_TWICE, build, engines_of, solver_call
from mtmm_jax.benchmarks.speed.timing import interleaved, machine, write_json
from mtmm_jax.devices import parallel
from mtmm_jax.registry import choose

TASKS = (2, 4, 8, 16, 40)
QUICK_METHODS = ("equal", "famo", "mgda", "pcgrad", "cagrad", "nash", "upgrad")
ENGINES = ("losses", "representation", "gramian", "full")
GROUP = 8
Name = tuple[str, str, str | None]  # method, engine, peer
EQUAL: Name = ("equal", "losses", None)


def planned(trunk: str, k: int, options: argparse.Namespace) -> list[Name]:
    """The measurements for a trunk and number of tasks; a method's peers follow it."""
    if trunk == "solver":
        rules = {m: balancing.build(m, 2).rule for m in options.methods}
        return [(m, "jit", None) for m, rule in rules.items() if rule.needs == "gramian"]
    names = [EQUAL, *_peers("equal", trunk, options)]
    for method in options.methods:
        names += [(method, e, None) for e in engines_of(method, trunk) if e in options.engines]
        if method == "famo":
            names.append((FAMO_TWICE, "losses", None))
        names += _peers(method, trunk, options)
    return [name for name in dict.fromkeys(names) if not _too_slow(trunk, k, name, options)]


def _peers(method: str, trunk: str, options: argparse.Namespace) -> list[Name]:
    if not options.peers:
        return []
    from mtmm_jax.benchmarks.balancing import peers as others

    return [(method, engine, "torchjd") for engine in others.engines_of(method, trunk)]


def _too_slow(trunk: str, k: int, name: Name, options: argparse.Namespace) -> bool:
    return trunk == "resnet" and name[1:] == ("full", None) and k > options.full_tasks


def left_out(options: argparse.Namespace) -> list[str]:
    """A line for what --full_tasks leaves out, and one for the peers that cannot be built."""
    lines = []
    if options.peers:
        from mtmm_jax.benchmarks.balancing import peers as others

        known = [m for m in options.methods if m in others.AGGREGATORS]
        lacking = [m for m in known if not others.engines_of(m, "mlp")]
        if lacking:
            lines.append(f"left out (torchjd lacks a package for it): {', '.join(lacking)}")
    tasks = [k for k in options.tasks if k > options.full_tasks]
    if "resnet" in options.trunk and "full" in options.engines and tasks:
        reach = {m: engines_of(m, "resnet") for m in options.methods}
        alone = ", ".join(m for m, engines in reach.items() if engines == ["full"])
        counts = " ".join(map(str, tasks))
        line = f"left out (--full_tasks {options.full_tasks}): engine full, resnet, {counts} tasks"
        lines.append(line + (f"; no other engine has {alone}" if alone else ""))
    return lines


def grouped(names: Sequence[Name]) -> Iterator[list[Name]]:
    """About `GROUP` names at a time, a method's engines and peers together."""
    group: list[Name] = []
    for i, name in enumerate(names):
        group.append(name)
        last = i + 1 == len(names) or names[i + 1][0] != name[0]
        if last and (len(group) >= GROUP or i + 1 == len(names)):
            yield group
            group = []


def measure_solvers(k: int, names: Sequence[Name], seconds: float) -> list[dict]:
    """Rows of the rules alone, Gramian tier."""
    times = interleaved({name: solver_call(name[0], k) for name in names}, seconds)
    return [_row("solver", k, name, ms, None, None) for name, ms in times.items()]


def measure_steps(
    trunk: str, k: int, names: Sequence[Name], seconds: float, chunk: int
) -> list[dict]:
    """Rows of one trunk and number of tasks; each group next to the same equal-weight step."""
    base = build(trunk, k, *EQUAL[:2], 1)
    torch_floor = _torch_floor(trunk, k) if any(name[2] for name in names) else None
    rows = []
    for group in grouped(names):
        calls: dict[Name, Any] = {EQUAL: base}
        extra: dict[Name, float] = {EQUAL: 0.0}
        for name in group:
            if name != EQUAL:
                calls[name], megabytes = _step(trunk, k, name, chunk)
                extra[name] = megabytes - (torch_floor if name[2] else base.megabytes)
        # Warm: OpenMP's threads spin for milliseconds after a torch step, and what a large step
        # returned to the system is faulted in anew, both at the cost of the next one.
        times = interleaved(calls, seconds, warm=True)
        rows += [_row(trunk, k, n, times[n], times[n] / times[EQUAL], extra[n]) for n in group]
        calls.clear()
        _release()
    return rows


def _step(trunk: str, k: int, name: Name, chunk: int) -> tuple[Any, float]:
    method, engine, peer = name
    if not peer:
        step = build(trunk, k, method, engine, chunk)
        return step, step.megabytes
    from mtmm_jax.benchmarks.balancing import peers as others

    call = others.step(trunk, method, engine, models.data(trunk, k, BATCH[trunk]))
    call()  # what the first step makes and keeps is no part of the others
    return call, others.peak_mb(call)


def _torch_floor(trunk: str, k: int) -> float:
    from mtmm_jax.benchmarks.balancing import peers as others
    from mtmm_jax.benchmarks.speed.torch_threads import choose_threads

    plain = others.step(trunk, "equal", "equal", models.data(trunk, k, BATCH[trunk]))
    threads = choose_threads(plain, rounds=15)
    print(f"  peers on {threads} thread(s)", flush=True)
    return _step(trunk, k, ("equal", "equal", "torchjd"), 1)[1]


def _release() -> None:
    gc.collect()
    jax.clear_caches()


def _row(trunk: str, k: int, name: Name, ms: float, relative: Any, mb: Any) -> dict[str, Any]:
    method, engine, peer = name
    rounded = {"step_ms": round(ms, 4), "relative_to_equal": relative and round(relative, 3)}
    extra = None if mb is None else round(mb, 1)
    names = {"trunk": trunk, "tasks": k, "method": method, "engine": engine}
    return names | rounded | {"extra_mb": extra, "peer": peer}


class Store:
    """The rows measured so far, and their JSON file, if there is one."""

    def __init__(self, path: str | None, options: argparse.Namespace, kept_freed: bool) -> None:
        self.path = Path(path) if path else None
        self.settings = {
            "seconds": options.seconds,
            "chunk": options.chunk,
            "xla_flags": os.environ.get("XLA_FLAGS", ""),
        }
        self.machine = machine() | {"keep_freed_memory": kept_freed}
        if options.peers:
            self.machine["peers"] = {n: metadata.version(n) for n in ("torch", "torchjd")}
        self.rows: list[dict] = []
        if self.path and self.path.exists():
            self._resume(json.loads(self.path.read_text()))

    def _resume(self, document: dict) -> None:
        before = document.get("machine", {})
        if "peers" in before and "peers" not in self.machine:
            self.machine["peers"] = before["peers"]
        now = {"settings": self.settings} | self.machine
        then = {"settings": document.get("settings")} | before
        if "peers" not in then:
            now.pop("peers", None)
        differing = sorted(key for key in now | then if now.get(key) != then.get(key))
        if not differing:
            self.rows = document["rows"]
            return
        old = self.path.with_name(f"{self.path.name}.old")
        os.replace(self.path, old)
        print(f"{self.path}: other {', '.join(differing)}; starts anew, moved to {old.name}")

    def missing(self, trunk: str, k: int, names: Sequence[Name]) -> list[Name]:
        """Those of the names that have no row."""
        pair = [row for row in self.rows if (row["trunk"], row["tasks"]) == (trunk, k)]
        present = {(row["method"], row["engine"], row["peer"]) for row in pair}
        return [name for name in names if name not in present]

    def add(self, rows: Sequence[dict]) -> None:
        """Takes rows up, in the order of the trunks and tasks, and writes the file."""
        order = ["solver", *sorted(BATCH)]
        self.rows.extend(rows)
        self.rows.sort(key=lambda row: (order.index(row["trunk"]), row["tasks"]))
        if self.path:
            write_json(self.path, self.rows, self.machine, self.settings)


def measure(store: Store, options: argparse.Namespace) -> None:
    """Measures what the store has not, one trunk and number of tasks after the other."""
    for trunk in ("solver", *options.trunk):
        for k in options.tasks:
            names = planned(trunk, k, options)
            todo = store.missing(trunk, k, names)
            kept = f", {len(names) - len(todo)} kept" if len(todo) < len(names) else ""
            methods = ", ".join(dict.fromkeys(name[0] for name in todo)) or "nothing"
            print(f"{trunk}, {k} tasks: {len(todo)} to measure{kept}: {methods}", flush=True)
            if not todo:
                continue
            if trunk == "solver":
                store.add(measure_solvers(k, todo, options.seconds))
            else:
                store.add(measure_steps(trunk, k, todo, options.seconds, options.chunk))
            _release()


def _print_table(rows: Sequence[dict]) -> None:
    print(f"{'trunk':8}{'tasks':>6} {'method':16}{'engine':16}{'ms':>10}{'/equal':>8}{'+MB':>9}")
    for row in rows:
        relative = "" if row["relative_to_equal"] is None else f"{row['relative_to_equal']:.2f}"
        extra = "" if row["extra_mb"] is None else f"{row['extra_mb']:.1f}"
        print(
            f"{row['trunk']:8}{row['tasks']:>6} {row['method']:16}{row['engine']:16}"
            f"{row['step_ms']:>10.3f}{relative:>8}{extra:>9} {row['peer'] or ''}"
        )


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m mtmm_jax.benchmarks.balancing",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--tasks", type=int, nargs="+", help=f"default: {TASKS}; --quick: 4 16")
    add("--methods", nargs="+", help="default: all; --quick: a few")
    add("--engines", nargs="+", default=ENGINES, choices=ENGINES)
    add("--trunk", nargs="+", default=["mlp"], choices=sorted(BATCH))
    add("--chunk", type=int, default=1, help="pullbacks per call, engine full")
    full = "most tasks at which the resnet is measured with engine full: its one pullback a "
    full += (
        "task takes minutes to compile and run; above, the engine is left out, and with it each "
    )
    full += "method that has no other (default: %(default)s)"
    add("--full_tasks", type=int, default=8, help=full)
    add("--seconds", type=float, help="timing of each, at least 5 steps; default 2; --quick: 0.3")
    add("--peers", action="store_true", help="next to torch and torchjd")
    add("--quick", action="store_true", help="fewer methods, shorter timing")
    freed = "freed memory stays in the process, for both frameworks, as in the training command"
    add("--keep_freed_memory", action="store_true", help=freed)
    add("--json", help="write the rows here; rows that stand in it are not measured again")
    add("--plot", help="write a picture here")
    options = parser.parse_args(argv)
    options.tasks = options.tasks or ((4, 16) if options.quick else TASKS)
    quick = QUICK_METHODS if options.quick else tuple(balancing.METHODS)
    options.methods = options.methods or quick
    if options.seconds is None:
        options.seconds = 0.3 if options.quick else 2.0
    for method in options.methods:
        choose(method, balancing.METHODS, "--methods", "method")
    return options


def main(argv: Sequence[str] | None = None) -> list[dict]:
    """Measures, prints, and writes the chosen rows."""
    options = _options(argv)
    kept_freed = options.keep_freed_memory and parallel.keep_freed_memory()
    store = Store(options.json, options, kept_freed)
    measure(store, options)
    _print_table(store.rows)
    for line in left_out(options):
        print(line)
    if options.plot:
        plot(store.rows, options.plot)
    return store.rows


if __name__ == "__main__":
    main()
