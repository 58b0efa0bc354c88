"""Every balancing method on thousands of hard Jacobians: finite, near the optimum, equivariant.

    python -m mtmm_jax.benchmarks.balancing.fuzz --count 2000 --json fuzz.json --plot fuzz.png

One vmapped program per method and dtype takes Jacobians of 1 to 64 tasks, padded to 64, in four
versions: as it is, its rows permuted, absent rows deleted in place of masked, and scaled by a power
of two. Checked: all results are finite; the update against `references` (which share no code with
the methods); equivariance to permutation; exactness of row deletion; the degree in the scale.

Errors are relative to the update, by the condition of the unit-diagonal Gramian of the rows that
are not zero. Of dependent rows (`deficient`) it is infinite; they are counted apart.
"""

from __future__ import annotations

import argparse
import functools
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from mtmm_jax import balancing
from mtmm_jax.balancing.base import decide, gather
from mtmm_jax.benchmarks.balancing import references
from mtmm_jax.benchmarks.speed.timing import machine, write_json

TASKS, WIDTH = 64, 72
HYPER: dict[str, dict[str, Any]] = {"nash": {"max_norm": 0.0}}
DEGREE = {"nash": 0.0, "fairgrad": 0.0}
"""Of the update in the gradients' common scale; 1 where not listed."""
EQUIVARIANT = tuple(sorted({*references.UPDATES, *references.EQUATIONS} - {"pcd", "krum"}))
HOMOGENEOUS = (*EQUIVARIANT, "krum", "pcgrad", "gradvac", "graddrop", "trimmed_mean", "equal")
TOLERANCE = {np.float32: 1e-3, np.float64: 1e-6}
WELL = 1e4
FAMILIES = (
    "random",
    "conflicting",
    "aligned",
    "copies",
    "nearly parallel",
    "stationary",
    "nearly stationary",
    "zero rows",
)
SCALES = ("one", "common", "thousandfold", "extreme")


class Case(NamedTuple):
    """A Jacobian `[K, P]` of float32 numbers, who is present, the losses, and where it is from."""

    rows: np.ndarray
    present: np.ndarray
    losses: np.ndarray
    family: str
    scale: str


def draw(rng: np.random.Generator, number: int, most: int = TASKS) -> Case:
    """One case; families and scales take turns."""
    family = FAMILIES[number % len(FAMILIES)]
    scale = SCALES[number // len(FAMILIES) % len(SCALES)]
    k = int(rng.choice([1, 2, 3, 4, 5, 8, 13, 24, 40, 64]))
    k = min(max(k, 1 if family in ("random", "aligned", "zero rows") else 2), most)
    rank = k if rng.random() < 0.6 else int(rng.integers(1, k + 1))
    rows = rng.normal(size=(k, rank)) @ rng.normal(size=(rank, WIDTH)) / rank**0.5
    common = rng.normal(size=WIDTH)
    tiny = 10 ** rng.uniform(-7, -1)
    if family == "conflicting":
        rows = rows - 0.5 * rows.mean(0, keepdims=True) + 0.1 * common
    elif family == "aligned":
        rows = rows + 2 * common
    elif family == "copies":
        some = rng.integers(0, k, size=max(k // 2, 1))
        rows[some] = rows[rng.integers(0, k)] * rng.choice(
            [-2.0, -1.0, 1.0, 0.5], size=(len(some), 1)
        )
    elif family == "nearly parallel":
        rows[1:] = rows[:1] + tiny * rows[1:]
    elif family in ("stationary", "nearly stationary"):
        rows[-1] = -rng.uniform(0.1, 1, k - 1) @ rows[:-1]
        if family == "nearly stationary":
            rows[-1] += tiny * np.linalg.norm(rows[-1]) * common / WIDTH**0.5
    elif family == "zero rows":
        rows[rng.random(k) < 0.3] = 0
    if scale == "common":
        rows = rows * 10 ** rng.uniform(-15, 15)
    elif scale == "thousandfold":
        rows = rows * 10 ** rng.uniform(-3, 3, size=(k, 1))
    elif scale == "extreme":
        rows = rows * 10 ** rng.uniform(-15, 15, size=(k, 1))
    present = rng.random(k) < (0.8 if rng.random() < 0.5 else 1.1)
    present[rng.integers(k)] = True
    losses = 10 ** rng.uniform(-3, 3, size=k)
    rows, losses = rows.astype(np.float32), losses.astype(np.float32)
    return Case(rows.astype(np.float64), present, losses.astype(np.float64), family, scale)


def versions(case: Case, rng: np.random.Generator, most: int) -> list[tuple[np.ndarray, ...]]:
    """`(rows, present, losses)`, padded: as it is, permuted, absent rows deleted, scaled."""
    order = rng.permutation(len(case.rows))
    here = case.present
    kept = (case.rows[here], here[here], case.losses[here])
    return [
        pad(case.rows, here, case.losses, most),
        pad(case.rows[order], here[order], case.losses[order], most),
        pad(*kept, most),
        pad(case.rows * 2.0**7, here, case.losses, most),
    ]


def pad(
    rows: np.ndarray, present: np.ndarray, losses: np.ndarray, most: int
) -> tuple[np.ndarray, ...]:
    """Absent tasks after the others, up to the common shape; NaN where a task is absent."""
    more = most - len(rows)
    rows = np.where(present[:, None], rows, np.nan)
    return (
        np.pad(rows, ((0, more), (0, 0))),
        np.pad(present, (0, more)),
        np.pad(losses, (0, more), constant_values=1.0),
    )


@functools.cache
def program(kind: str, most: int = TASKS) -> Any:
    """`(rows [N, K, P], present, losses) -> (updates, weights)` from the initial state."""
    balancer = balancing.build({"kind": kind, **HYPER.get(kind, {})}, most)
    rule = balancer.rule

    def one(rows: Any, present: Any, losses: Any) -> tuple[Any, Any]:
        named = {"x": rows}
        others = {"x": rows[:, ::-1]} if rule.second_sample else None
        evidence = gather(losses, present, named, others)
        state = balancer.init({"x": rows[0]})
        outcome = decide(rule, state.rule, evidence)
        return outcome.gradient["x"], outcome.weights

    return jax.jit(jax.vmap(one))


class Results(NamedTuple):
    """Updates `[N, 4, P]` and weights `[N, 4, K]` of the versions of each case."""

    updates: np.ndarray
    weights: np.ndarray


def run(
    kind: str, cases: Sequence[Case], dtype: Any, chunk: int = 32, most: int = TASKS, seed: int = 0
) -> Results:
    """A method on all versions of the cases, `chunk` cases at a time in one program."""
    rng = np.random.default_rng(seed)
    updates, weights = [], []
    with jax.enable_x64(dtype == np.float64):
        for start in range(0, len(cases), chunk):
            part = list(cases[start : start + chunk])
            part += part[-1:] * (chunk - len(part))
            every = [version for case in part for version in versions(case, rng, most)]
            rows, present, losses = (np.stack(x) for x in zip(*every, strict=True))
            found = program(kind, most)(rows.astype(dtype), present, losses.astype(dtype))
            update, weight = (np.asarray(x, np.float64) for x in found)
            updates.append(update.reshape(chunk, 4, WIDTH))
            weights.append(weight.reshape(chunk, 4, most))
    count = len(cases)
    return Results(np.concatenate(updates)[:count], np.concatenate(weights)[:count])


def condition(case: Case) -> float:
    """Of the unit-diagonal Gramian of the rows that are not zero."""
    norms, units = references.split(case.rows[case.present])
    if not (norms > 0).any():
        return 1.0
    values = np.linalg.svd(units[norms > 0], compute_uv=False)
    if len(values) < (norms > 0).sum() or values[-1] < 1e-8 * values[0]:
        return np.inf
    return float((values[0] / values[-1]) ** 2)


def sizes(cases: Sequence[Case], found: Results) -> np.ndarray:
    """The scale of relative differences: the update's length, or a thousandth of `sum |w_k| n_k`
    where its terms cancel, as at a Pareto stationary point."""
    out = np.linalg.norm(found.updates[:, 0], axis=1)
    for i, case in enumerate(cases):
        norms, _ = references.split(case.rows * case.present[:, None])
        terms = np.abs(found.weights[i, 0, : len(norms)]) @ norms
        out[i] = max(out[i], 1e-3 * terms) or 1.0
    return out


def errors(kind: str, cases: Sequence[Case], found: Results) -> np.ndarray:
    """Relative errors of the updates; NaN where the reference is undefined."""
    out, scale = np.full(len(cases), np.nan), sizes(cases, found)
    for i, case in enumerate(cases):
        rows = case.rows[case.present]
        size = 1.0 if kind == "pcd" else np.abs(rows).max() or 1.0  # its eps is absolute
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if kind in references.EQUATIONS:
                weights = found.weights[i, 0, : len(case.rows)][case.present]
                if references.far_from_stationary(rows / size):
                    out[i] = references.decrement(rows, weights, references.EQUATIONS[kind])
                continue
            expected = references.UPDATES[kind](rows / size) * size
        out[i] = np.linalg.norm(found.updates[i, 0] - expected) / scale[i]
    return out


def deviations(kind: str, cases: Sequence[Case], found: Results) -> dict[str, np.ndarray]:
    """Relative differences between the versions of each case."""
    base, length = found.updates[:, 0], sizes(cases, found)
    named = {"deleted": found.updates[:, 2]}
    if kind in EQUIVARIANT:
        named["permuted"] = found.updates[:, 1]
    if kind in HOMOGENEOUS:
        named["scaled"] = found.updates[:, 3] / 2.0 ** (7 * DEGREE.get(kind, 1.0))
    return {k: np.linalg.norm(v - base, axis=1) / length for k, v in named.items()}


def judge(
    kind: str, cases: Sequence[Case], dtype: Any, chunk: int = 32, most: int = TASKS
) -> dict[str, Any]:
    """One row of the results: counts, and the largest errors where the condition is at most 1e4."""
    found = run(kind, cases, dtype, chunk, most)
    finite = np.isfinite(found.updates).all((1, 2)) & np.isfinite(found.weights).all((1, 2))
    measured = np.array([condition(case) for case in cases])
    well = measured <= WELL
    row = {"method": kind, "dtype": np.dtype(dtype).name, "cases": len(cases)}
    row |= {"not_finite": int((~finite).sum()), "well_conditioned": int(well.sum())}
    for name, values in deviations(kind, cases, found).items():
        row[name] = float(np.max(values[well & finite], initial=0))
    if kind in references.UPDATES or kind in references.EQUATIONS:
        error = errors(kind, cases, found)
        names = ("condition", "error", "well", "family", "scale", "tasks", "case")
        row["errors"] = [
            dict(
                zip(
                    names,
                    (float(c), float(e), bool(w), x.family, x.scale, len(x.rows), i),
                    strict=True,
                )
            )
            for i, (c, e, w, x) in enumerate(zip(measured, error, well, cases, strict=True))
            if np.isfinite(e)
        ]
        used = [e for e in row["errors"] if e["well"]]
        row["compared"] = len(used)
        row["error"] = max((e["error"] for e in used), default=0.0)
        row["error_p99"] = float(np.quantile([e["error"] for e in used] or [0.0], 0.99))
        dependent = [e["error"] for e in row["errors"] if np.isinf(e["condition"])]
        row["deficient"] = len(dependent)
        row["deficient_median"] = float(np.median(dependent or [0.0]))
        row["deficient_p90"] = float(np.quantile(dependent or [0.0], 0.9))
        row["above"] = sum(e["error"] > TOLERANCE[dtype] for e in used)
    return row


def cases_of(count: int, seed: int = 0, most: int = TASKS) -> list[Case]:
    """The cases of a seed, of at most so many tasks."""
    rng = np.random.default_rng(seed)
    return [draw(rng, number, most) for number in range(count)]


def rows_of(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row per method and dtype."""
    cases = cases_of(options.count, options.seed)
    for kind in options.methods or balancing.METHODS:
        for dtype in (np.float32, np.float64):
            row = judge(kind, cases, dtype)
            print({k: v for k, v in row.items() if k != "errors"}, flush=True)
            yield row


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Runs the fuzz, prints a line per method and writes the results."""
    parser = argparse.ArgumentParser(prog="python -m mtmm_jax.benchmarks.balancing.fuzz")
    parser.add_argument("--count", type=int, default=400, help="Jacobians")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--methods", nargs="+", choices=sorted(balancing.METHODS))
    parser.add_argument("--json", help="write the rows here, without the single errors")
    parser.add_argument("--plot", help="write the errors against the condition here")
    options = parser.parse_args(argv)
    rows = list(rows_of(options))
    if options.plot:
        plot(rows, options.plot)
    if options.json:
        short = [{k: v for k, v in row.items() if k != "errors"} for row in rows]
        write_json(options.json, short, machine(), {"count": options.count, "seed": options.seed})
    return rows


def plot(rows: Sequence[dict[str, Any]], path: str) -> None:
    """Error against condition, a panel per method, both dtypes."""
    import matplotlib.pyplot as plt

    kinds = list(dict.fromkeys(row["method"] for row in rows if "errors" in row))
    figure, axes = plt.subplots(3, -(-len(kinds) // 3), figsize=(15, 9), sharex=True, sharey=True)
    for axis, kind in zip(axes.flat, kinds, strict=False):
        for row in rows:
            if row["method"] == kind:
                x = [min(e["condition"], 1e17) for e in row["errors"]]
                y = [max(e["error"], 1e-17) for e in row["errors"]]
                axis.loglog(x, y, ".", ms=3, alpha=0.5, label=row["dtype"])
                axis.axhline(TOLERANCE[np.dtype(row["dtype"]).type], lw=0.5, color="gray")
        axis.axvline(WELL, lw=0.5, color="gray")
        axis.set_title(kind)
    axes.flat[0].legend()
    figure.supxlabel("condition of the unit-diagonal Gramian")
    figure.supylabel("relative error of the update")
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)


if __name__ == "__main__":
    main()
