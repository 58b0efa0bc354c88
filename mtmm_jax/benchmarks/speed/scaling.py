"""Weak scaling of the training step over simulated devices: rows a device constant.

    python -m mtmm_jax.benchmarks.speed.scaling --quick
    python -m mtmm_jax.benchmarks.speed.scaling --json scaling.json
    python -m mtmm_jax.benchmarks.speed.scaling --config emoji --rows 16 --config.balancing=pcgrad

Each number of devices runs in a process of its own, in which one CPU stands for so many; the forms
(pmap; a mesh that copies the parameters, `data`; one that divides them, `fsdp`) are timed there in
turns. SIMULATED DEVICES SHARE THE CORES of this machine: n of them have n times the work and no
more to do it with, so once one device fills the cores a step of n takes n times as long at best.
What is read off is the price of the forms, not the speed of a machine with n devices.

Rows: form, devices, rows_per_device, batch_size, step_ms, ms_per_row; efficiency, the step time of
one device over that of n, which is 1 where every device has cores of its own and 1/n where one
fills them all; throughput, rows a second over those of one device, n times that, of which 1 is lost
to nothing where one device fills the cores. One device is the program without collectives (`jit`).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from mtmm_jax.command import guarded, prepare_jax
from mtmm_jax.ranges import Count
from mtmm_jax.registry import ConfigError, check, choose

FORMS: dict[str, Any] = {
    "pmap": lambda count: count,
    "data": lambda count: {"kind": "mesh", "data": count},
    "fsdp": lambda count: {"kind": "mesh", "data": 1, "fsdp": count},
}
DEVICES = (1, 2, 4)
# Devices are threads that wait for each other; on a busy machine one may come late.
_PATIENCE = "--xla_cpu_collective_call_terminate_timeout_seconds=600"


def default_config(quick: bool = False) -> Any:
    """Two series through Transformers, three tasks: made-up data, and parameters to divide; or,
    quicker to compile, two tables through MLPs."""
    from ml_collections import ConfigDict

    form, kind = ("table", "table_mlp") if quick else ("series", "series_transformer")
    encoder = {"kind": kind, "preset": "tiny"}
    tasks = {f"task_{k}": {"kind": "regression", "target": f"task_{k}"} for k in (1, 2)}
    return ConfigDict(
        {
            "seed": 0,
            "steps": 1000,
            "batch_size": 1,
            "devices": 1,
            "data": {"kind": "generator", "form": form, "steps": 32, "size": [2048, 8, 8]},
            "model": {
                "width": 32 if quick else 128,
                "encoders": {"m1": encoder, "m2": encoder},
                "fusion": "concat",
            },
            "tasks": {**tasks, "synergy": {"kind": "classification", "target": "synergy"}},
            "balancing": {"kind": "equal"},
            "optimizer": {"kind": "adamw", "learning_rate": 1e-3},
            "checkpoint": {"every": 1000, "keep": 1, "best": "mean"},
            "evaluation": {"every": 1000, "batch_size": 8, "log_every": 100, "baselines": False},
        }
    )


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m mtmm_jax.benchmarks.speed.scaling",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Values of the config are set by --config.section.key=value, as in training.",
    )
    p.add_argument("--config", help="a config file, or a name (default: made up)")
    p.add_argument("--forms", nargs="+", default=list(FORMS), help="default: pmap data fsdp")
    p.add_argument("--devices", type=int, nargs="+", default=list(DEVICES), help="default: 1 2 4")
    p.add_argument("--rows", type=int, default=32, help="of a batch a device (default: 32)")
    p.add_argument("--seconds", type=float, default=3.0, help="for each time (default: 3)")
    p.add_argument("--repeats", type=int, default=3, help="passes over all; the median counts")
    p.add_argument("--quick", action="store_true", help="8 rows, a small model, one short pass")
    p.add_argument("--json", help="write the rows here")
    p.add_argument("--child", type=int, help=argparse.SUPPRESS)
    return p


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    options, overrides = parser().parse_known_args(argv)
    if options.quick:
        options.rows, options.seconds, options.repeats = 8, 0.2, 1
    for form in options.forms:
        choose(form, FORMS, "--forms", "form")
    for name, values in (
        ("--devices", options.devices),
        ("--rows", [options.rows]),
        ("--repeats", [options.repeats]),
    ):
        check(min(values), Count, name)
    if options.child:
        print(json.dumps(times(options, overrides)))
        return 0
    if 1 not in options.devices:
        raise ConfigError(f"--devices: {options.devices} has no 1, which all are compared with")
    given = list(sys.argv[1:] if argv is None else argv)
    counts = list(dict.fromkeys(options.devices))
    found: dict[tuple[str, int], list[float]] = {}
    for _ in range(options.repeats):
        for count in counts:
            measured = ask(given, count)
            for form, milliseconds in measured["step_ms"].items():
                found.setdefault((form, count), []).append(milliseconds)
    rows = scaling({key: statistics.median(v) for key, v in found.items()}, options.rows)
    cores = measured["machine"]["cores"]
    print(f"simulated devices that share {cores} cores; {options.rows} rows a device")
    print(f"{'form':6}{'devices':>8}{'step ms':>10}{'ms a row':>10}{'efficiency':>12}"
          f"{'throughput':>12}")  # fmt: skip
    for row in rows:
        print(
            f"{row['form']:6}{row['devices']:>8}{row['step_ms']:>10.1f}{row['ms_per_row']:>10.3f}"
            f"{row['efficiency']:>12.2f}{row['throughput']:>12.2f}"
        )
    if options.json:
        from mtmm_jax.benchmarks.speed.timing import write_json

        settings = {
            "simulated": f"devices are parts of one CPU and share its {cores} cores",
            "config": options.config or ("tables" if options.quick else "series"),
            "overrides": overrides,
            "load_average": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        }
        write_json(options.json, rows, measured["machine"], settings)
    return 0


def scaling(step_ms: Mapping[tuple[str, int], float], rows: int) -> list[dict[str, Any]]:
    """`{(form, devices): ms}` as the rows that are printed; each form next to its one device."""
    made = []
    for form, count in sorted(step_ms, key=lambda key: (list(FORMS).index(key[0]), key[1])):
        taken, alone = step_ms[form, count], step_ms[form, 1]
        made.append(
            {
                "form": form,
                "devices": count,
                "rows_per_device": rows,
                "batch_size": rows * count,
                "step_ms": round(taken, 2),
                "ms_per_row": round(taken / (rows * count), 4),
                "efficiency": round(alone / taken, 3),
                "throughput": round(count * alone / taken, 3),
            }
        )
    return made


def ask(arguments: Sequence[str], count: int) -> dict[str, Any]:
    """The result of `times` from a process with so many simulated devices."""
    flags = " ".join([os.environ.get("XLA_FLAGS", ""), _PATIENCE]).strip()
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(count),
        "XLA_FLAGS": flags,
    }
    command = [sys.executable, "-m", "mtmm_jax.benchmarks.speed.scaling", *arguments]
    done = subprocess.run(
        [*command, "--child", str(count)], env=environment, capture_output=True, text=True
    )
    if done.returncode:
        reason = done.stderr.strip().removeprefix("error: ")[-800:]
        raise ConfigError(f"{count} devices: {reason or f'exit code {done.returncode}'}")
    return json.loads(done.stdout.splitlines()[-1])


def times(options: argparse.Namespace, overrides: Sequence[str]) -> dict[str, Any]:
    """`{"step_ms": {form: ms}, "machine": ...}` on the devices of this process."""
    prepare_jax()

    import jax

    from mtmm_jax import training
    from mtmm_jax.benchmarks.speed.timing import interleaved, machine
    from mtmm_jax.devices import parallel

    count, calls = options.child, {}
    for form in options.forms:
        config = training.load(options.config) if options.config else default_config(options.quick)
        config = training.apply_overrides(config, overrides)
        with config.unlocked(), config.ignore_type():
            config.batch_size = options.rows * count
            config.evaluation.batch_size = options.rows * count
            config.devices = 1 if count == 1 else FORMS[form](count)
        if count > 1 or not calls:
            experiment = training.assemble(config)
            batch = next(iter(experiment.source.train(config.batch_size, seed=config.seed)))
            calls[form] = _Steps(experiment, parallel, batch, jax.block_until_ready)
    taken = interleaved(calls, options.seconds)
    if count == 1:  # one program stands for all forms
        taken = dict.fromkeys(options.forms, taken[options.forms[0]])
    return {"step_ms": taken, "machine": machine()}


class _Steps:
    """A training step that resumes from where the last call left the state."""

    def __init__(self, experiment: Any, parallel: Any, batch: Any, wait: Any) -> None:
        self._step = parallel.wrap(experiment.step(), experiment.devices)
        self._state = parallel.replicate(experiment.init(), experiment.devices)
        self._batch, self._wait = batch, wait

    def __call__(self) -> None:
        self._state, _ = self._step(self._state, self._batch)
        self._wait(self._state)


if __name__ == "__main__":
    sys.exit(main())
