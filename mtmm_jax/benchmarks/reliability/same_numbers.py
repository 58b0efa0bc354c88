"""Compares initial states and first losses of configs before and after a change of the code.

    python -m mtmm_jax.benchmarks.reliability.same_numbers --json before.json
    python -m mtmm_jax.benchmarks.reliability.same_numbers --json after.json --against before.json

Run it in the checkout before the change and in the one after it, on one machine and with one jax.
A row holds the digest of every leaf of the state before the first step, and the losses of the first
steps. `--against` exits with 1 where a digest differs or a loss differs by more than 1e-6 relative.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mtmm_jax.command import console, guarded, prepare_jax
from mtmm_jax.ranges import Count
from mtmm_jax.registry import ConfigError, check

CONFIGS = (
    "emoji:100,digits,films,generator,fusion_late,bottleneck_linear,joint_training,"
    "soft_cross_stitch,weights_uncertainty,pretrain_words,domain_mmd,semi_pseudo,quantised,"
    "scenario_home,video_understanding_small,emoji_scenes,emoji_speech"
)
TOLERANCE = 1e-6


def runs(text: str) -> dict[str, int]:
    """`{config: steps}` from "emoji:100,digits"; two steps where none are given."""
    found = {}
    for part in text.split(","):
        name, _, steps = part.partition(":")
        if steps and not steps.isdigit():
            raise ConfigError(f"--configs: {part!r}: {steps!r} is not a number of steps")
        found[name] = check(int(steps or 2), Count, f"--configs: {name}")
    return found


def row(config: Any, steps: int) -> dict[str, Any]:
    """The digests of the initial state's leaves, by path, and `[steps][losses]`."""
    import jax

    from mtmm_jax import training
    from mtmm_jax.devices import parallel

    experiment = training.assemble(config)
    state, devices = experiment.init(), experiment.devices
    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(state))
    digests = {
        jax.tree_util.keystr(path): hashlib.sha256(np.asarray(leaf).tobytes()).hexdigest()[:16]
        for path, leaf in leaves
    }
    size, seed = experiment.config["batch_size"], experiment.config["seed"]
    batches = iter(experiment.source.train(size, seed=seed, shard=parallel.shard(devices)))
    step = parallel.wrap(experiment.step(), devices)
    state, losses = parallel.replicate(state, devices), []
    for _ in range(steps):
        state, metrics = step(state, next(batches))
        losses.append(np.asarray(jax.device_get(metrics["losses"]), np.float64).tolist())
    return {"state": digests, "losses": losses}


def difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """The differences between two rows in one line; empty if there are none."""
    paths = {**before["state"], **after["state"]}
    moved = [p for p in paths if before["state"].get(p) != after["state"].get(p)]
    if moved:
        return f"{len(moved)} of {len(paths)} leaves differ, such as {moved[0]}"
    a, b = (np.asarray(one["losses"], np.float64) for one in (before, after))
    if a.shape != b.shape:
        return f"losses are {list(a.shape)} and {list(b.shape)}"
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    apart = np.where(same, 0.0, np.abs(a - b) / np.maximum(np.abs(a), 1e-30))
    worst = float(np.where(np.isnan(apart), np.inf, apart).max(initial=0.0))
    return f"losses differ by {worst:.1e} relative" if worst > TOLERANCE else ""


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m mtmm_jax.benchmarks.reliability.same_numbers",
        description="Writes initial states and first losses of configs, and compares two such "
        "files.",
    )
    p.add_argument("--configs", default=CONFIGS, help="names with steps, such as emoji:100,digits")
    p.add_argument("--json", required=True, help="the file to write")
    p.add_argument("--against", help="the file of the code before")
    return p


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    prepare_jax()

    from mtmm_jax import training

    before = json.loads(Path(options.against).read_text()) if options.against else {}
    out, rows, differ = console(), {}, 0
    for name, steps in runs(options.configs).items():
        rows[name] = row(training.load(name), steps)
        Path(options.json).write_text(json.dumps(rows, indent=1) + "\n")
        line = f"{len(rows[name]['state'])} leaves, {steps} steps"
        if name in before:
            found = difference(before[name], rows[name])
            differ += bool(found)
            line += f": {found or 'the same'}"
        out.print(f"{name}: {line}", highlight=False, soft_wrap=True)
    return int(differ > 0)


if __name__ == "__main__":
    sys.exit(main())
