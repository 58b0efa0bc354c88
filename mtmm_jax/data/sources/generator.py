"""Made-up data whose structure is known, so that a method's claim can be checked against the truth.

What modalities share, what each has alone and what only their combination tells; how tasks are
related and how they pull against each other: each is a knob, and the best reachable metric of each
target is a formula (`ceilings`).
"""

from __future__ import annotations

import functools
import math
from typing import Literal

import numpy as np

from mtmm_jax.batch import Batch, Modality, Spec, Target
from mtmm_jax.chance import uniform
from mtmm_jax.data.pipeline.source import SPLITS, Source
from mtmm_jax.devices.machine import host_bytes, refuse_larger
from mtmm_jax.ranges import Correlation, Decay, Layers, Natural, NonNegative, Size, SplitSizes
from mtmm_jax.registry import ConfigError, checked

_FACTORS = 3  # redundant, unique, synergistic: each one coordinate of a modality's state
_OPPOSED = 1  # the direction that tasks with `conflict` pull both ways
# What a number is drawn for: first coordinate after the seed.
_BITS, _STATE, _NOISE, _MISSING, _UNLABELLED, _ROTATION, _WAVES = range(7)


@functools.partial(checked, where="data.generator")
def generator(
    *,
    modalities: Layers = 2,
    redundancy: NonNegative = 1.0,
    uniqueness: NonNegative = 1.0,
    synergy: NonNegative = 1.0,
    tasks: Layers = 2,
    relatedness: Correlation = 0.5,
    conflict: NonNegative = 0.0,
    noise: NonNegative = 0.5,
    width: Size = 16,
    size: SplitSizes = (4096, 512, 512),
    form: Literal["table", "series"] = "table",
    steps: Size = 16,
    task_kind: Literal["number", "class"] = "number",
    missing: Decay = 0.0,
    label_missing: Decay = 0.0,
    seed: Natural = 0,
) -> Source:
    r"""Modalities `m1..mM` and targets with redundancy, uniqueness, synergy and conflict by knob.

    A row has fair signs `r`, `u_1..u_M`, `s_1..s_M` (each -1 or 1) and a normal vector `z` of
    `tasks + 1` numbers, all independent. Modality m sees, through a random rotation `Q_m`,

        x_m = Q_m [redundancy r, uniqueness u_m, synergy s_m, z, 0 ...] + noise e,   e ~ N(0, I).

    As a series it is spread over time: coordinate f of the bracket is multiplied by a sine
    `p_mf(t)` of unit energy, random frequency and phase, and each step has its own `e`; a matched
    filter gives the table back, so that all formulas below hold for both.

    Targets, with p(a) = Phi(a / noise) the accuracy at which a sign of amplitude a is read off:

    - `redundant`, 1 where r > 0. Best accuracy from n of the modalities: p(sqrt(n) redundancy).
    - `unique_m`, 1 where u_m > 0: p(uniqueness) with modality m, 1/2 without.
    - `synergy`, 1 where an odd number of the s_m is negative (XOR): any M - 1 modalities carry no
      information about it; all: (1 + (2 p(synergy) - 1)^M) / 2, linear in products of coordinates.
    - `task_k`, y_k = d_k . z with d_k = (w_k + conflict (-1)^k c) / sqrt(1 + conflict^2). The unit
      vectors w_k have pairwise cosine `relatedness`, c is a unit vector orthogonal to them, so
      cos(d_i, d_j) = (relatedness + (-1)^(i + j) conflict^2) / (1 + conflict^2). These also are the
      cosines of the tasks' optimal linear weights, and those of their gradients with respect to
      one shared linear predictor at zero (squared error); gradients of an odd and an even task
      oppose each other where conflict^2 > relatedness. With relatedness 1, conflict > 0 and an even
      number of tasks, the linear predictor that is best on average has gradients of cosine exactly
      -1: what is common is learned, what is left is opposed. Heads of their own may turn a sign
      round; opposed then stays what a narrow trunk cannot hold.
      Best R2 from n modalities: n / (n + noise^2). With `task_kind="class"` the target is 1
      where y_k > 0; best accuracy: 1/2 + arcsin(sqrt(R2)) / pi.

    Numbers depend on (seed, split, row) only: another size or another split changes no row.

    Costs nothing to store. Use it: where the best reachable metric has to be known. Not: in the
    place of real data.

    Args:
        modalities: how many, M.
        redundancy, uniqueness, synergy: amplitudes; at 0 the factor is in no input and its targets
            are pure chance.
        tasks: how many of `task_1..task_K`.
        relatedness: pairwise cosine of their directions, from -1 / (K - 1) to 1.
        conflict: strength of the direction that odd and even tasks want with opposite signs.
        noise: standard deviation of what is added to every number of the inputs.
        width: columns of a table, channels of a series; at least `tasks + 4`.
        size: rows of train, validation and test.
        form: "table" or "series".
        steps: length of a series.
        task_kind: "number" or "class".
        missing: each modality of a row is absent with this probability, but never all of them (one
            of them, at random, then stays): a share of missing - missing^M / M.
        label_missing: each label of a training row is absent with this probability; validation and
            test are labelled in full.
        seed: of everything, the rows included.
    """
    where = "data.generator"
    amplitudes = (redundancy, uniqueness, synergy)
    lowest = -1 / (tasks - 1) if tasks > 1 else -1
    if not lowest - 1e-9 <= relatedness <= 1:
        raise ConfigError(
            f"{where}.relatedness: {relatedness}; {tasks} directions can have a pairwise cosine "
            f"of {lowest:.3g} to 1"
        )
    if width < _FACTORS + tasks + _OPPOSED:
        raise ConfigError(f"{where}.width: {width}; {tasks} tasks need {tasks + 4} or more")
    per_row = modalities * width * (steps if form == "series" else 1)
    total = 16.0 * sum(size) * per_row  # the noise is drawn in float64, next to the numbers
    refuse_larger(total, host_bytes(), f"{where}.size", f"{sum(size):,} rows", "choose fewer")
    frame = _frame(modalities, width, tasks, steps if form == "series" else None, seed)
    aims = directions(tasks, relatedness, conflict)
    parts = [
        _make(frame, aims, amplitudes, noise, missing, label_missing if s == 0 else 0.0, seed, s, n)
        for s, n in enumerate(size)
    ]
    x, present, y, labelled = (np.concatenate([part[i] for part in parts]) for i in range(4))
    names = ("redundant", *(f"unique_{m + 1}" for m in range(modalities)), "synergy")
    names += tuple(f"task_{k + 1}" for k in range(tasks))
    classes = set(names[:-tasks]) | (set(names[-tasks:]) if task_kind == "class" else set())
    columns = {
        name: (column > 0).astype(np.int32) if name in classes else column
        for name, column in zip(names, y.T, strict=True)
    }
    stops = np.cumsum(size)
    return Source(
        name="generator",
        spec=Spec(
            {f"m{m + 1}": _modality(form, width, steps) for m in range(modalities)},
            {
                name: _target(column[: size[0]][labelled[: size[0], i]])
                for i, (name, column) in enumerate(columns.items())
            },
        ),
        rows={split: np.arange(b - n, b) for split, b, n in zip(SPLITS, stops, size, strict=True)},
        compose=functools.partial(_compose, x, present, columns, labelled),
        draws=0,
        assets={},
        describe=functools.partial(_describe, stops),
        augment=False,
        seed=seed,
    )


def directions(tasks: int, relatedness: float, conflict: float) -> np.ndarray:
    """`[K, K + 1]`: the unit vectors d_k, whose last coordinate is the opposed one."""
    cosines = np.full((tasks, tasks), relatedness)
    np.fill_diagonal(cosines, 1.0)
    values, vectors = np.linalg.eigh(cosines)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    signs = np.where(np.arange(tasks) % 2, 1.0, -1.0)
    return np.c_[root, conflict * signs] / math.sqrt(1 + conflict**2)


def ceilings(
    *,
    modalities: Layers = 2,
    redundancy: NonNegative = 1.0,
    uniqueness: NonNegative = 1.0,
    synergy: NonNegative = 1.0,
    noise: NonNegative = 0.5,
    seen: int | None = None,
) -> dict[str, float]:
    """The best reachable metrics from `seen` of the modalities (all of them by default).

    Accuracies of `redundant`, `unique` (of a modality that is seen), `synergy` and of tasks that
    are classes (`task_class`); R2 of tasks that are numbers (`task_number`).
    """
    seen = modalities if seen is None else seen

    def read(amplitude: float) -> float:
        if amplitude == 0 or noise == 0:
            return 1.0 if amplitude else 0.5
        return 0.5 * (1 + math.erf(amplitude / noise / math.sqrt(2)))

    explained = seen / (seen + noise**2) if seen else 0.0
    return {
        "redundant": read(math.sqrt(seen) * redundancy),
        "unique": read(uniqueness) if seen else 0.5,
        "synergy": (1 + (2 * read(synergy) - 1) ** modalities) / 2 if seen == modalities else 0.5,
        "task_number": explained,
        "task_class": 0.5 + math.asin(math.sqrt(explained)) / math.pi,
    }


def _normal(draws: int, *coordinates: int | np.ndarray) -> np.ndarray:
    """`[..., draws]` standard normal numbers by place (Box and Muller)."""
    one, two = np.split(uniform(2 * draws, *coordinates).astype(np.float64), 2, axis=-1)
    return np.sqrt(-2 * np.log1p(-one)) * np.cos(2 * np.pi * two)


def _frame(modalities: int, width: int, tasks: int, steps: int | None, seed: int) -> np.ndarray:
    """`[M, F, width]` or `[M, F, T, width]`: where in x_m each of F coordinates is seen.

    Each modality's F arrays are orthonormal.
    """
    shown = _FACTORS + tasks + _OPPOSED
    square = _normal(width, seed, _ROTATION, np.arange(modalities * width))
    orthogonal, upper = np.linalg.qr(square.reshape(modalities, width, width))
    orthogonal *= np.sign(np.diagonal(upper, axis1=1, axis2=2))[:, None]
    seen = orthogonal.swapaxes(1, 2)[:, :shown]
    if steps is None:
        return seen
    chance = uniform(2, seed, _WAVES, np.arange(modalities * shown)).reshape(modalities, shown, 2)
    cycles = 1 + np.floor(chance[..., :1] * max(steps // 4, 1))
    waves = np.sin(2 * np.pi * (cycles * (np.arange(steps) + 0.5) / steps + chance[..., 1:]))
    waves = waves / np.linalg.norm(waves, axis=-1, keepdims=True)
    return waves[..., None] * seen[:, :, None]


def _make(
    frame: np.ndarray,
    aims: np.ndarray,
    amplitudes: tuple[float, float, float],
    noise: NonNegative,
    missing: float,
    label_missing: float,
    seed: int,
    split: int,
    rows: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Inputs `[N, M, ...]`, their presence, targets `[N, Y]` as real numbers, their presence."""
    modalities, tasks = len(frame), len(aims)
    place = np.arange(rows)
    signs = np.where(uniform(1 + 2 * modalities, seed, _BITS, split, place) < 0.5, -1.0, 1.0)
    r, u, s = np.split(signs, [1, 1 + modalities], axis=1)
    z = _normal(tasks + _OPPOSED, seed, _STATE, split, place)
    redundancy, uniqueness, synergy = amplitudes
    x = np.empty((rows, modalities, *frame.shape[2:]), np.float32)
    for m in range(modalities):
        state = np.c_[redundancy * r[:, 0], uniqueness * u[:, m], synergy * s[:, m], z]
        extra = _normal(x[0, m].size, seed, _NOISE, split, m, place) if noise else 0.0
        seen = state @ frame[m].reshape(len(frame[m]), -1) + noise * extra
        x[:, m] = seen.reshape(x[:, m].shape)
    lot = uniform(modalities, seed, _MISSING, split, place)
    present = (lot >= missing) | (lot == lot.max(1, keepdims=True))
    x[~present] = 0
    # Odd numbers of negative signs are class 1, as with two modalities XOR is.
    y = np.c_[r, u, -s.prod(1), z @ aims.T].astype(np.float32)
    labelled = uniform(y.shape[1], seed, _UNLABELLED, split, place) >= label_missing
    return x, present, y, labelled


def _describe(stops: np.ndarray, id: int) -> str:
    split = int(np.searchsorted(stops, id, side="right"))
    return f"{SPLITS[split]} row {id - (stops[split - 1] if split else 0)}"


def _modality(form: str, width: int, steps: int) -> Modality:
    names = tuple(f"x{i + 1}" for i in range(width))
    if form == "table":
        return Modality("table", (width,), "float32", names=names)
    return Modality("series", (steps, width), "float32", rate=1.0, names=names)


def _target(known: np.ndarray) -> Target:
    """The `Target` of a label, from the training rows."""
    if known.dtype == np.int32:
        share = float(known.mean()) if len(known) else 0.5
        return Target("class", classes=("no", "yes"), frequencies=(1 - share, share))
    if not len(known):
        return Target("number")
    return Target("number", mean=float(known.mean()), std=float(known.std()) or 1.0)


def _compose(
    x: np.ndarray,
    present: np.ndarray,
    columns: dict[str, np.ndarray],
    labelled: np.ndarray,
    rows: np.ndarray,
    chance: np.ndarray | None,
) -> Batch:
    del chance  # nothing is augmented
    return {
        "inputs": {
            f"m{m + 1}": {"x": x[rows, m], "present": present[rows, m]} for m in range(x.shape[1])
        },
        "targets": {
            name: {"y": column[rows], "present": labelled[rows, i]}
            for i, (name, column) in enumerate(columns.items())
        },
        "id": rows.astype(np.int32),
    }
