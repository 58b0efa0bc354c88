"""Step time and memory of every balancing method and engine against the number of tasks.

    python -m mtmm_jax.benchmarks.balancing --quick --tasks 4 16 --methods cagrad upgrad
    python -m mtmm_jax.benchmarks.balancing --trunk mlp resnet --peers --json balancing.json

Rows: trunk ("solver" for the rule alone inside jit), tasks, method, engine, step_ms,
relative_to_equal (our own equal-weight step of the same run), extra_mb (over that step), peer.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mtmm_jax import balancing
from mtmm_jax.balancing.core import decide, gather
from mtmm_jax.benchmarks import balancing_models as models
from mtmm_jax.benchmarks.timing import interleaved, write_json
from mtmm_jax.registry import choose

TASKS = (2, 4, 8, 16, 40)
QUICK_METHODS = ("equal", "famo", "mgda", "pcgrad", "cagrad", "nash", "upgrad")
ENGINES = ("losses", "representation", "gramian", "full")
BATCH = {"mlp": 128, "resnet": 16}


class Step:
    """One compiled training step with SGD, its parameters donated from call to call."""

    def __init__(self, trunk: str, num_tasks: int, balancer: Any, engine: str, chunk: int) -> None:
        losses_fn = models.tapped_mlp() if engine == "gramian" else models.split(trunk)
        second = balancer.rule.second_sample
        fn = balancing.value_and_grad(
            losses_fn, balancer, engine=engine, shared=models.shared_labels, chunk=chunk
        )

        def step(params: Any, state: Any, batch: Any) -> tuple[Any, Any]:
            out = fn(params, state, batch, other=(batch,) if second else None)
            params = jax.tree.map(lambda p, g: p - 1e-3 * g, params, out.grads)
            return params, self.after(losses_fn, balancer, params, out.state, batch)

        self.params = models.init(trunk, num_tasks)
        self.state = balancer.init(self.params, models.shared_labels)
        self.batch = jax.tree.map(jnp.asarray, models.data(trunk, num_tasks, BATCH[trunk]))
        jitted = jax.jit(step, donate_argnums=(0, 1))
        self.compiled = jitted.lower(self.params, self.state, self.batch).compile()
        self.megabytes = self.compiled.memory_analysis().temp_size_in_bytes / 2**20

    def after(self, losses_fn: Any, balancer: Any, params: Any, state: Any, batch: Any) -> Any:
        """What the method does once the parameters have moved: nothing."""
        del losses_fn, balancer, params, batch
        return state

    def __call__(self) -> None:
        self.params, self.state = self.compiled(self.params, self.state, self.batch)
        jax.block_until_ready(self.params)


class FamoTwice(Step):
    """FAMO as published: the losses of the same batch once more after the step."""

    def after(self, losses_fn: Any, balancer: Any, params: Any, state: Any, batch: Any) -> Any:
        """Forward again, and learn."""
        sums, counts, _ = losses_fn(params, batch)
        return balancer.observe(state, sums / counts)


def engines_of(method: str, trunk: str) -> list[str]:
    """The engines that can give a method its evidence."""
    rule = balancing.build(method, 2).rule
    if rule.needs == "losses":
        return ["losses"]
    if rule.needs == "jacobian" or rule.second_sample:
        return ["full"]
    return ["representation", "full", *(["gramian"] if trunk == "mlp" else [])]


def solver_call(method: str, num_tasks: int) -> Callable[[], Any]:
    """The rule alone, inside jit, on conflicting random gradients."""
    rng = np.random.default_rng(num_tasks)
    rows = {"x": jnp.asarray(rng.normal(size=(num_tasks, 2 * num_tasks)), jnp.float32)}
    balancer = balancing.build(method, num_tasks)
    state = balancer.init({"x": rows["x"][0]})
    losses = jnp.linspace(0.5, 1.5, num_tasks)
    evidence = gather(losses, jnp.ones(num_tasks, bool), rows, rows)
    evidence = evidence._replace(grads=None)
    decided = jax.jit(lambda s, e: decide(balancer.rule, s, e))
    return lambda: jax.block_until_ready(decided(state.rule, evidence))


def measure_solvers(tasks: Sequence[int], methods: Sequence[str], seconds: float) -> list[dict]:
    """Rows of the rules alone, Gramian tier."""
    rows = []
    for k in tasks:
        chosen = [m for m in methods if balancing.build(m, 2).rule.needs == "gramian"]
        times = interleaved({m: solver_call(m, k) for m in chosen}, seconds) if chosen else {}
        rows += [_row("solver", k, m, "jit", ms, None, None) for m, ms in times.items()]
    return rows


def _row(
    trunk: str,
    k: int,
    method: str,
    engine: str,
    ms: float,
    relative: Any,
    mb: Any,
    peer: Any = None,
) -> dict[str, Any]:
    rounded = {"step_ms": round(ms, 4), "relative_to_equal": relative and round(relative, 3)}
    extra = None if mb is None else round(mb, 1)
    names = {"trunk": trunk, "tasks": k, "method": method, "engine": engine}
    return names | rounded | {"extra_mb": extra, "peer": peer}


def measure_steps(
    trunk: str,
    k: int,
    methods: Sequence[str],
    engines: Sequence[str],
    seconds: float,
    peers: bool,
    chunk: int,
) -> list[dict]:
    """Rows of one trunk and number of tasks, everything interleaved in one run."""
    calls: dict[tuple, Any] = {
        ("equal", "losses", None): Step(trunk, k, balancing.equal(k), "losses", 1)
    }
    for method in methods:
        for engine in engines_of(method, trunk):
            if (method, engine, None) not in calls and engine in engines:
                built = balancing.build(method, k)
                calls[method, engine, None] = Step(trunk, k, built, engine, min(chunk, k))
    if "famo" in methods:
        famo = balancing.famo(k, after="same")
        calls["famo(same)", "losses", None] = FamoTwice(trunk, k, famo, "losses", 1)
    memory = {name: step.megabytes for name, step in calls.items()}
    if peers:
        from mtmm_jax.benchmarks import balancing_peers as others

        batch = models.data(trunk, k, BATCH[trunk])
        print(f"{trunk}, {k} tasks: peers on {others.choose_threads(trunk, batch)} thread(s)")
        for method in ["equal", *(m for m in methods if m in others.AGGREGATORS)]:
            for engine, call in others.steps(trunk, method, batch).items():
                calls[method, engine, "torchjd"] = call
                call()
                memory[method, engine, "torchjd"] = others.peak_mb(call)
    times = interleaved(calls, seconds)
    base = times["equal", "losses", None]
    rows = []
    for (method, engine, peer), ms in times.items():
        floor = memory["equal", "equal" if peer else "losses", peer]
        extra = memory[method, engine, peer] - floor
        rows.append(_row(trunk, k, method, engine, ms, ms / base, extra, peer))
    return rows


def plot(rows: Sequence[dict], path: str) -> None:
    """Relative step time against the number of tasks, a line per method and engine."""

    import matplotlib.pyplot as plt

    trunks = sorted({row["trunk"] for row in rows} - {"solver"})
    figure, axes = plt.subplots(1, max(len(trunks), 1), squeeze=False, figsize=(7 * len(trunks), 5))
    for axis, trunk in zip(axes[0], trunks, strict=True):
        lines: dict[str, list[tuple[int, float]]] = {}
        for row in rows:
            if row["trunk"] == trunk:
                label = " ".join(filter(None, (row["peer"], row["method"], row["engine"])))
                lines.setdefault(label, []).append((row["tasks"], row["relative_to_equal"]))
        for label, points in sorted(lines.items()):
            axis.plot(*zip(*sorted(points), strict=True), marker="o", label=label)
        axis.set(xscale="log", yscale="log", title=trunk, xlabel="tasks", ylabel="time / equal")
        axis.legend(fontsize=6)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> list[dict]:
    """Measures, prints, and writes what was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", type=int, nargs="+", help=f"default: {TASKS}; --quick: 4 16")
    parser.add_argument("--methods", nargs="+", help="default: all; --quick: a few")
    parser.add_argument("--engines", nargs="+", default=ENGINES, choices=ENGINES)
    parser.add_argument("--trunk", nargs="+", default=["mlp"], choices=sorted(BATCH))
    parser.add_argument("--chunk", type=int, default=1, help="pullbacks per call, engine full")
    parser.add_argument("--peers", action="store_true", help="beside torch and torchjd")
    parser.add_argument("--quick", action="store_true", help="fewer methods, shorter timing")
    parser.add_argument("--json", help="write the rows here")
    parser.add_argument("--plot", help="write a picture here")
    options = parser.parse_args(argv)
    tasks = options.tasks or ((4, 16) if options.quick else TASKS)
    methods = options.methods or (QUICK_METHODS if options.quick else tuple(balancing.METHODS))
    for method in methods:
        choose(method, balancing.METHODS, "--methods", "method")
    seconds = 0.3 if options.quick else 2.0
    rows = measure_solvers(tasks, methods, seconds)
    for trunk in options.trunk:
        measure = functools.partial(
            measure_steps, trunk, methods=methods, engines=options.engines, seconds=seconds
        )
        for k in tasks:
            rows += measure(k, peers=options.peers, chunk=options.chunk)
    print(f"{'trunk':8}{'tasks':>6} {'method':16}{'engine':16}{'ms':>10}{'/equal':>8}{'+MB':>9}")
    for row in rows:
        relative = "" if row["relative_to_equal"] is None else f"{row['relative_to_equal']:.2f}"
        extra = "" if row["extra_mb"] is None else f"{row['extra_mb']:.1f}"
        print(
            f"{row['trunk']:8}{row['tasks']:>6} {row['method']:16}{row['engine']:16}"
            f"{row['step_ms']:>10.3f}{relative:>8}{extra:>9} {row['peer'] or ''}"
        )
    if options.json:
        write_json(options.json, rows)
    if options.plot:
        plot(rows, options.plot)
    return rows


if __name__ == "__main__":
    main()
