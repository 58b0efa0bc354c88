"""The effect of learning rates by task on conflict, for made-up tasks with opposed gradients.

    python -m mtmm_jax.benchmarks.balancing.pacing --json pacing.json

Four numbers are predicted in their own units, which differ threefold, with squared errors, so that
some gradients are about nine times as long as others. Odd and even tasks want one direction of the
inputs with opposite signs, in a trunk that ends in two numbers, too few for all, or in four. Equal
weights let the long gradients decide. Printed are the share of steps that go against a task's own
descent and the longest over the shortest pull `r_k w_k |g_k|`, over all steps; pairs of task
gradients that conflict in the last half; and R2 on the test split. In the narrow trunk gradients
that have all been followed must end in conflict; in the wide one they need not.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mtmm_jax.benchmarks.tables.result_table import Board, arguments, seeds_of, spread
from mtmm_jax.command import console, guarded, prepare_jax

# What is compared: `optimizer.tasks` of each entry.
ENTRIES: dict[str, Any] = {
    "equal": None,
    "fixed": {"task_1": 0.2, "task_2": 1.8, "task_3": 0.2, "task_4": 1.8},
    "gradient_norm": {"kind": "gradient_norm"},
    "gradient_norm, half": {"kind": "gradient_norm", "power": 0.5},
    "loss_rate": {"kind": "loss_rate"},
}
TASKS = ("task_1", "task_2", "task_3", "task_4")
UNITS = (3.0, 1.0, 3.0, 1.0)
WIDTHS = (2, 4)
OPTIMIZER = {"kind": "sgd", "learning_rate": 0.01, "momentum": 0.9, "clip": 5.0}
FIGURES = ("against", "imbalance", "conflict", "r2", "worst_r2")


def problem(seed: int) -> tuple[Any, Any]:
    """Training and test split, each `(x [N, 32], y [N, K])`."""
    from mtmm_jax.data.sources.generator import generator

    source = generator(
        tasks=4, relatedness=0.6, conflict=1.0, noise=0.2, size=(2048, 1, 512), seed=seed
    )

    def split(name: str) -> tuple[np.ndarray, np.ndarray]:
        batch = source.compose(source.rows[name], None)
        x = np.concatenate([batch["inputs"][m]["x"] for m in ("m1", "m2")], axis=1)
        y = np.stack([batch["targets"][task]["y"] for task in TASKS], axis=1)
        return x, (y * np.array(UNITS)).astype(np.float32)

    return split("train"), split("test")


def initial(seed: int, inputs: int, width: int) -> dict[str, Any]:
    """A trunk of one hidden layer that ends in `width` numbers, and linear heads on these."""
    chance = np.random.default_rng(seed)

    def draw(rows: int, columns: int) -> np.ndarray:
        return (chance.standard_normal((rows, columns)) / np.sqrt(rows)).astype(np.float32)

    heads = {task: {"w": draw(width, 1)} for task in TASKS}
    return {"trunk": {"hidden": draw(inputs, 32), "out": draw(32, width)}, "heads": heads}


def run(
    rates: Mapping[str, Any] | None, seed: int, steps: int, width: int = WIDTHS[0]
) -> dict[str, float]:
    """One training, and its metrics."""
    import jax
    import jax.numpy as jnp

    from mtmm_jax import balancing
    from mtmm_jax.optim import optimizers, per_task

    train, test = problem(seed)
    params = initial(seed, train[0].shape[1], width)

    def trunk(params: Any, x: Any, y: Any) -> tuple[Any, Any]:
        del y
        return jnp.tanh(x @ params["trunk"]["hidden"]) @ params["trunk"]["out"], ()

    def predictions(params: Any, copies: Any) -> Any:
        heads = zip(TASKS, copies, strict=False)
        return jnp.concatenate([copy @ params["heads"][task]["w"] for task, copy in heads], axis=1)

    def readout(params: Any, copies: Any, aux: Any, x: Any, y: Any) -> tuple[Any, Any, Any]:
        sums = 0.5 * jnp.square(predictions(params, copies) - y).sum(0)
        return sums, jnp.full((len(TASKS),), x.shape[0], sums.dtype), aux

    # Equal weights, with the Gramian next to them so that all entries are measured alike.
    plain = balancing.equal(len(TASKS))
    inner = balancing.Balancer(plain.rule._replace(needs="gramian"), len(TASKS))
    balancer = per_task.pace(inner, rates, TASKS)
    heads = functools.partial(per_task.pace_heads, balancer=balancer, tasks=TASKS)
    optimizer, _ = optimizers.build(OPTIMIZER, steps, heads)
    grad = balancing.value_and_grad(balancing.Split(trunk, readout), balancer, engine="full")

    def step(carried: Any, rows: Any) -> tuple[Any, Any]:
        params, inner_state, balanced = carried
        out = grad(params, balanced, train[0][rows], train[1][rows])
        updates, inner_state = optimizer.update(
            out.grads, inner_state, params, task_rates=per_task.current_rates(out.state)
        )
        diagnostics = {
            k: out.diagnostics[k] for k in ("weights", "norms", "cosines", "conflict_rate")
        }
        return (jax.tree.map(jnp.add, params, updates), inner_state, out.state), diagnostics

    chance = np.random.default_rng(seed)
    rows = jnp.asarray(chance.integers(0, len(train[0]), (steps, 64)))
    train, test = jax.tree.map(jnp.asarray, (train, test))
    carried = (params, optimizer.init(params), balancer.init(params))
    carried, diagnostics = jax.jit(lambda c, r: jax.lax.scan(step, c, r))(carried, rows)
    kept = jax.tree.map(np.asarray, diagnostics)
    pulls = kept["weights"] * kept["norms"]
    # <sum_j r_j w_j g_j, g_k> / |g_k|: below 0, the step raises this task's loss.
    along = np.einsum("nj,njk->nk", pulls, kept["cosines"])
    shared, _ = trunk(carried[0], *test)
    error = predictions(carried[0], [shared] * len(TASKS)) - test[1]
    r2 = 1 - np.square(error).mean(0) / np.var(test[1], axis=0)
    return {
        "conflict": float(kept["conflict_rate"][steps // 2 :].mean()),
        "imbalance": float(np.median(pulls.max(1) / np.maximum(pulls.min(1), 1e-12))),
        "against": float((along < 0).mean()),
        "r2": float(np.mean(r2)),
        "worst_r2": float(np.min(r2)),
    }


def parser() -> argparse.ArgumentParser:
    about = "Conflict and imbalance of task gradients, with and without rates by task."
    p = arguments("pacing", about)
    p.add_argument("--steps", type=int, default=600, help="of each run (default: 600)")
    return p


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    prepare_jax()

    from rich.progress import track
    from rich.table import Table

    out = console()
    board = Board(options.json)
    table = Table(title=f"{options.steps} steps; mean ± standard deviation over seeds")
    for column in ("trunk", "rates", "steps against", "imbalance", "conflicting pairs", "R2"):
        table.add_column(column)
    table.add_column("worst R2")
    plan = [(width, name) for width in WIDTHS for name in ENTRIES]
    for width, name in track(plan, description="pacing", console=out):
        key = {"width": width, "entry": name, "steps": options.steps}
        for seed in board.left(seeds_of(options.seeds), **key):
            metrics = run(ENTRIES[name], seed, options.steps, width)
            board.add({**key, "seed": seed, **metrics})
        rows = board.find(**key)
        cells = [spread([row[metric] for row in rows]) for metric in FIGURES]
        table.add_row(str(width), name, *cells)
    out.print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
