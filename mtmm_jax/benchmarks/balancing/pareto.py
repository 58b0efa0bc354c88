"""The two-task toy landscape of CAGrad, Nash-MTL and FAMO: which methods reach its Pareto front?

    python -m mtmm_jax.benchmarks.balancing.pareto --quick --methods equal mgda --plot pareto.png

Each method starts from the five standard points and runs Adam; a row says where it ended and
whether that is on the front (`gap`: how far both losses could still fall at once).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mtmm_jax import balancing
from mtmm_jax.benchmarks.speed.timing import write_json
from mtmm_jax.registry import choose

STARTS = ((-8.5, 7.5), (0.0, 0.0), (9.0, 9.0), (-7.5, -0.5), (9.0, -1.0))
TOLERANCE = 0.1
# Losses go down to about -20 here; those methods that need positive ones see them shifted.
SHIFT = 25.0


def losses(x: jax.Array) -> jax.Array:
    """The two objectives at x `[2]`: two valleys of log cliffs, two bowls in between."""
    x1, x2 = x[0], x[1]
    low = 5e-6
    log_1 = jnp.log(jnp.maximum(jnp.abs(0.5 * (-x1 - 7) - jnp.tanh(-x2)), low)) + 6
    log_2 = jnp.log(jnp.maximum(jnp.abs(0.5 * (-x1 + 3) + jnp.tanh(-x2) + 2), low)) + 6
    gate_1 = jnp.clip(jnp.tanh(0.5 * x2), 0, 1)
    gate_2 = jnp.clip(jnp.tanh(-0.5 * x2), 0, 1)
    bowl_1 = ((-x1 + 7) ** 2 + 0.1 * (-x2 - 8) ** 2) / 10 - 20
    bowl_2 = ((-x1 - 7) ** 2 + 0.1 * (-x2 - 8) ** 2) / 10 - 20
    return jnp.stack([log_1 * gate_1 + bowl_1 * gate_2, log_2 * gate_1 + bowl_2 * gate_2])


def front(points: int = 201) -> np.ndarray:
    """`[points, 2]` losses on the Pareto front: the valley floor between the two bowls' minima,
    both of which lie at x2 close to -8."""
    x1, x2 = np.linspace(-7, 7, points), np.linspace(-8.5, -7.5, 101)
    grid = np.stack(np.meshgrid(x1, x2, indexing="ij"), -1).astype(np.float32)
    values = np.asarray(jax.jit(jax.vmap(jax.vmap(losses)))(grid))
    return values[np.arange(points), values.sum(-1).argmin(1)]


def gap(values: np.ndarray, on_front: np.ndarray) -> float:
    """The distance from the Pareto front: the least `max(a_1, a_2)` by which `values` exceeds a
    point of the front, 0 on it."""
    return float(max(0.0, np.max(np.min(values - on_front, axis=1))))


def descend(method: str, steps: int, learning_rate: float) -> np.ndarray:
    """`[starts, steps, 2]`, the paths of one method from all starting points."""
    balancer = balancing.build(method, 2)
    with jax.numpy_dtype_promotion("standard"):  # optax.adam raises a float to an integer power
        optimizer = optax.chain(balancer, optax.adam(learning_rate))

        def step(carry: Any, _: None) -> tuple[Any, jax.Array]:
            x, state = carry
            rows = jax.jacrev(losses)(x)
            update, state = optimizer.update(
                {"x": rows}, state, {"x": x}, losses=losses(x) + SHIFT, other={"x": rows}
            )
            return (x + update["x"], state), x

        def path(start: jax.Array) -> jax.Array:
            state = optimizer.init({"x": start})
            return jax.lax.scan(step, (start, state), None, length=steps)[1]

        return np.asarray(jax.jit(jax.vmap(path))(jnp.asarray(STARTS)))


def plot(paths: dict[str, np.ndarray], path: str) -> None:
    """Paths over the contours of the mean loss, a panel for each method."""

    import matplotlib.pyplot as plt

    axis = jnp.linspace(-11, 11, 151)
    grid = jnp.stack(jnp.meshgrid(axis, axis, indexing="xy"), -1)
    mean = np.asarray(jax.vmap(jax.vmap(losses))(grid)).mean(-1)
    columns = min(6, len(paths))
    rows = -(-len(paths) // columns)
    figure, panels = plt.subplots(
        rows, columns, squeeze=False, figsize=(2.6 * columns, 2.6 * rows), layout="constrained"
    )
    for panel in panels.flat:
        panel.set_axis_off()
    for panel, (method, points) in zip(panels.flat, paths.items(), strict=False):
        panel.contour(axis, axis, mean, levels=25, linewidths=0.4, colors="grey")
        panel.plot([-7, 7], [-8, -8], color="tab:orange", linewidth=3, alpha=0.6)
        for track in points:
            panel.plot(*track.T, linewidth=1)
            panel.plot(*track[0], "k.", markersize=4)
            panel.plot(*track[-1], "r*", markersize=6)
        panel.set(title=method, xlim=(-11, 11), ylim=(-11, 11))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> list[dict]:
    """Runs, prints, and writes the chosen methods."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--methods", nargs="+", default=list(balancing.METHODS))
    parser.add_argument("--steps", type=int, help="default: 50000; --quick: 3000")
    parser.add_argument("--learning_rate", type=float, help="default: 1e-3; --quick: 2e-2")
    parser.add_argument("--quick", action="store_true", help="fewer, longer steps")
    parser.add_argument("--json", help="write the rows here")
    parser.add_argument("--plot", help="write the picture here")
    options = parser.parse_args(argv)
    steps = options.steps or (3000 if options.quick else 50000)
    rate = options.learning_rate or (2e-2 if options.quick else 1e-3)
    on_front, rows, paths = front(), [], {}
    for method in options.methods:
        choose(method, balancing.METHODS, "--methods", "method")
        track = descend(method, steps, rate)
        paths[method] = track[:, :: max(1, steps // 500)]
        for start, end in zip(STARTS, track[:, -1], strict=True):
            values = np.asarray(losses(jnp.asarray(end)))
            distance = gap(values, on_front)
            reached = bool(distance < TOLERANCE)
            rows.append(
                {"method": method, "start": start, "end": end.tolist(), "losses": values.tolist()}
                | {"gap": distance, "on_front": reached}
            )
        reached = [row["on_front"] for row in rows[-len(STARTS) :]]
        marks = "".join("+" if good else "-" for good in reached)
        print(f"{method:16} {marks}  {sum(reached)} of {len(STARTS)} starts reach the front")
    if options.json:
        write_json(options.json, rows)
    if options.plot:
        plot(paths, options.plot)
    return rows


if __name__ == "__main__":
    main()
