"""Similarity of modalities: CKA, CCA and cross-prediction of their pooled features.

Plain NumPy over features `[N, D]`, row for row of the same samples. All figures are near 1 for
features that say the same, near 0 for unrelated ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import combinations
from typing import Any

import jax
import numpy as np

from mtmm_jax import fusion
from mtmm_jax.batch import Batch, Tokens, clean
from mtmm_jax.chance import bits
from mtmm_jax.model import Model
from mtmm_jax.model.forward import LEVELS, EncoderCache, ForwardPass
from mtmm_jax.registry import ConfigError, choose
from mtmm_jax.tasks.task import modalities_of

FEWEST = 16  # samples that have both modalities; below this nothing is said
_PENALTIES = np.logspace(-2, 3, 11)  # of ridge regression, as shares of the mean variance
_EDGE = 1e-12


def encode(model: Model, variables: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict:
    """`{modality: Tokens}` of the encoders by themselves, as deep as the model runs them. Pure."""
    seen = clean({name: inputs[name] for name in model.encoders if name in inputs})
    cache = EncoderCache(ForwardPass(variables), model.encoders, seen, model.spec)
    return {name: cache.tokens(name, _depth(model, name)) for name in seen}


def _depth(model: Model, name: str) -> str:
    """The furthest that any task has an encoder run on its own tokens."""
    order = ("stem", "first", "second")
    depths = [
        LEVELS[model.fusions[read].stage] if read in model.fusions else "second"
        for read in model.reads
        if name in modalities_of(read, model.encoders)
    ]
    return max(depths, key=order.index, default="second")


def pooled_features(
    model: Model, variables: Mapping[str, Any], batches: Iterable[Batch]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], np.ndarray]:
    """Each modality's mean token `[N, D]`, its presence `[N]`, and the rows' ids `[N]`."""

    @jax.jit
    def step(variables: Any, inputs: Any) -> dict[str, tuple[jax.Array, jax.Array]]:
        found: dict[str, Tokens] = encode(model, variables, inputs)
        return {name: (t.mean(), t.present) for name, t in found.items()}

    pooled, ids = [], []
    for batch in batches:
        keep = np.asarray(batch["weight"]) > 0
        both = jax.device_get(step(variables, batch["inputs"]))
        pooled.append(jax.tree.map(lambda x, keep=keep: x[keep], both))
        ids.append(np.asarray(batch["id"])[keep])
    names = tuple(pooled[0])
    features = {n: np.concatenate([t[n][0] for t in pooled]).astype(np.float64) for n in names}
    present = {n: np.concatenate([t[n][1] for t in pooled]) for n in names}
    return features, present, np.concatenate(ids)


def _centred(x: np.ndarray, where: str) -> np.ndarray:
    x = np.asarray(x, np.float64)
    if x.ndim != 2 or len(x) < 4 or not np.isfinite(x).all():
        raise ConfigError(f"{where}: {x.shape} is not [N, D] of finite numbers, N from 4 upwards")
    return x - x.mean(0)


def _same_rows(x: np.ndarray, y: np.ndarray, where: str) -> tuple[np.ndarray, np.ndarray]:
    x, y = _centred(x, where), _centred(y, where)
    if len(x) != len(y):
        raise ConfigError(f"{where}: {len(x)} rows against {len(y)}; they are of the same samples")
    return x, y


def cka(x: np.ndarray, y: np.ndarray, unbiased: bool = True) -> float:
    """Linear CKA, HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) with K = X X^T, L = Y Y^T.

    1 for features that differ by a rotation and a scale. The plain form (Kornblith et al. 2019),
    ||Y^T X||^2 / (||X^T X|| ||Y^T Y||), is near 1 for any features with more dimensions than
    samples; the unbiased one (Song et al. 2012; Nguyen et al. 2021) is near 0 for unrelated
    features at any size, and may be a little below. Costs N^2 D, or N D^2 in the plain form.

    Args:
        x, y: `[N, D]`, `[N, E]`.
        unbiased: take the kernels' diagonals out.
    """
    x, y = _same_rows(x, y, "cka")
    if not unbiased:
        products = [np.square(a.T @ b).sum() for a, b in ((x, y), (x, x), (y, y))]
    else:
        kernels = [features @ features.T for features in (x, y)]
        for kernel in kernels:
            np.fill_diagonal(kernel, 0.0)
        first, second = kernels
        pairs = ((first, second), (first, first), (second, second))
        products = [_hsic(a, b) for a, b in pairs]
    scale = products[1] * products[2]
    return float(products[0] / np.sqrt(scale)) if scale > _EDGE**2 else 0.0


def _hsic(a: np.ndarray, b: np.ndarray) -> float:
    """The unbiased estimate for kernels without diagonals, but for its factor 1 / (n (n - 3))."""
    n = len(a)
    rows = a.sum(0) @ b.sum(0)
    return float((a * b).sum() + a.sum() * b.sum() / ((n - 1) * (n - 2)) - 2 * rows / (n - 2))


def _directions(x: np.ndarray, keep: float) -> tuple[np.ndarray, np.ndarray]:
    """The principal directions that hold a share of the variance, and their variances."""
    _, scale, directions = np.linalg.svd(x, full_matrices=False)
    variance = scale**2 / len(x)
    total = variance.sum()
    if total <= _EDGE:
        return directions[:0].T, variance[:0]
    count = int(np.searchsorted(np.cumsum(variance) / total, keep - _EDGE) + 1)
    return directions[:count].T, variance[:count]


def cca(
    x: np.ndarray,
    y: np.ndarray,
    *,
    keep: float = 0.99,
    ridge: float = 1e-2,
    held_out: tuple[np.ndarray, np.ndarray] | None = None,
) -> np.ndarray:
    """Canonical correlations: of the directions in X and Y that go together most, one by one.

    The singular values of S_x^{-1/2} S_xy S_y^{-1/2}, on the principal components that hold a share
    of the variance (SVCCA, Raghu et al. 2017), S + ridge mean(S) in place of S (Vinod 1976). With
    `held_out` the directions are those of (x, y), their correlations those of the other rows:
    without it many dimensions and few rows correlate by chance. Invariant to rotation and scale.

    Args:
        x, y: `[N, D]`, `[N, E]`.
        keep: the share of the variance that is looked at.
        ridge: as a share of the mean variance of the kept components.
        held_out: `([M, D], [M, E])`.

    Returns:
        `[min(kept of x, kept of y)]` in 0..1, empty where one does not vary at all.
    """
    means = [np.asarray(v, np.float64).mean(0) for v in (x, y)]
    x, y = _same_rows(x, y, "cca")
    white = []
    for v in (x, y):
        directions, variance = _directions(v, keep)
        if not len(variance):
            return np.zeros(0)
        white.append(directions / np.sqrt(variance + ridge * variance.mean()))
    left, values, right = np.linalg.svd((x @ white[0]).T @ (y @ white[1]) / len(x))
    if held_out is None:
        return np.clip(values, 0.0, 1.0)
    count = len(values)
    sides = [
        (np.asarray(v, np.float64) - mean) @ w @ turn[:, :count]
        for v, mean, w, turn in zip(held_out, means, white, (left, right.T), strict=True)
    ]
    a, b = (side - side.mean(0) for side in sides)
    scale = np.sqrt(np.square(a).sum(0) * np.square(b).sum(0))
    return np.clip((a * b).sum(0) / np.maximum(scale, _EDGE), 0.0, 1.0)


def mean_cca(x: np.ndarray, y: np.ndarray, **options: Any) -> float:
    """The mean canonical correlation, 0 where there is none; options as for `cca`."""
    values = cca(x, y, **options)
    return float(values.mean()) if len(values) else 0.0


def cross_prediction(
    x: np.ndarray, y: np.ndarray, held_out: tuple[np.ndarray, np.ndarray]
) -> float:
    """R2 of Y from X by ridge regression, on rows that it was not fitted to; below 0: worse than
    the mean.

    The penalty is the one of least generalised cross-validation error (Golub et al. 1979), all of
    them from one decomposition. Not symmetric: an input may tell another that does not tell it.

    Args:
        x, y: `[N, D]`, `[N, E]`, to fit.
        held_out: `([M, D], [M, E])`, to measure.
    """
    middle, goal = (np.asarray(v, np.float64).mean(0) for v in (x, y))
    x, y = _same_rows(x, y, "cross_prediction")
    new_x, new_y = (np.asarray(v, np.float64) for v in held_out)
    left, scale, right = np.linalg.svd(x, full_matrices=False)
    turned, mean_variance = left.T @ y, max(np.square(scale).mean(), _EDGE)
    total = np.square(y).sum()
    best, weights = np.inf, np.zeros(len(scale))
    for penalty in _PENALTIES * mean_variance:
        shrink = scale**2 / (scale**2 + penalty)
        left_over = total - ((2 * shrink - shrink**2)[:, None] * np.square(turned)).sum()
        freedom = 1.0 - (shrink.sum() + 1) / len(x)  # one more for the mean
        error = left_over / freedom**2 if freedom > 0 else np.inf
        if error < best:
            best, weights = error, scale / (scale**2 + penalty)
    predicted = (new_x - middle) @ right.T @ (weights[:, None] * turned)
    spread = np.square(new_y - goal).sum()
    return float(1.0 - np.square(new_y - goal - predicted).sum() / max(spread, _EDGE))


def affinity(
    features: Mapping[str, np.ndarray],
    present: Mapping[str, np.ndarray],
    ids: np.ndarray,
    *,
    seed: int = 0,
) -> dict[str, Any]:
    """CKA (unbiased), held-out mean CCA and cross-prediction of every pair of modalities.

    A pair is measured on the samples that have both. What is fitted is fitted on one half of them
    and measured on the other; the halves are drawn by id, so that two views of one thing are never
    on both sides.

    Returns:
        `{"modalities": names, "samples", "cka", "cca", "r2": M x M lists}`, `r2[a][b]` of b
        predicted from a; NaN for a pair with too few samples, 1 on the diagonal.
    """
    names = list(features)
    size = len(names)
    matrices = {key: np.full((size, size), np.nan) for key in ("cka", "cca", "r2")}
    samples = np.zeros((size, size), int)
    for i, name in enumerate(names):
        samples[i, i] = present[name].sum()
        for table in matrices.values():
            table[i, i] = 1.0
    first = bits(seed, np.asarray(ids)) & np.uint64(1) == 0
    for i, j in combinations(range(size), 2):
        both = np.asarray(present[names[i]] & present[names[j]])
        samples[i, j] = samples[j, i] = both.sum()
        if min((both & first).sum(), (both & ~first).sum()) < FEWEST // 2:
            continue
        x, y = features[names[i]], features[names[j]]
        a, b = (x[both & first], y[both & first]), (x[both & ~first], y[both & ~first])
        matrices["cka"][i, j] = matrices["cka"][j, i] = cka(x[both], y[both])
        matrices["cca"][i, j] = matrices["cca"][j, i] = mean_cca(*a, held_out=b)
        matrices["r2"][i, j] = cross_prediction(*a, held_out=b)
        matrices["r2"][j, i] = cross_prediction(a[1], a[0], held_out=(b[1], b[0]))
    tables = {key: table.tolist() for key, table in matrices.items()}
    return {"modalities": names, "samples": samples.tolist(), **tables}


REDUNDANT, RELATED = 0.5, 0.15


def suggested_fusion(affinity: Mapping[str, Any]) -> tuple[str, str]:
    """A fusion to try first, and why; a rule of thumb over the mean of all pairs.

    - each predicts the other, mean R2 both ways from .5 upwards, or CKA from .5: redundant, they
      say the same thing. "weighted": late, few parameters, and any of them may be missing.
    - CCA below .15 and R2 below .15: they have next to nothing in common that interaction could
      find. "concat": late, each keeps what it knows and the head weighs it.
    - else complementary: they share a part, and each has one of its own. "bottleneck": let them
      exchange before they are pooled.

    It looks at what the encoders give, not at the labels: read it with the contributions.

    Args:
        affinity: as the function of that name gives it.
    """
    size = len(affinity["modalities"])
    if size < 2:
        return choose("concat", fusion.FUSIONS, "fusion"), "there is only one modality"
    away = ~np.eye(size, dtype=bool)
    pairs = {key: np.asarray(affinity[key], np.float64)[away] for key in ("cka", "cca", "r2")}
    known = {key: values[np.isfinite(values)] for key, values in pairs.items()}
    if not len(known["cka"]):
        return "concat", "too few samples have two modalities at once: nothing to interact"
    known["r2"] = np.maximum(known["r2"], 0.0)  # below the mean is as good as nothing
    mean = {key: float(values.mean()) for key, values in known.items()}
    evidence = f"mean R2 {mean['r2']:.2f}, CKA {mean['cka']:.2f}, held-out CCA {mean['cca']:.2f}"
    if mean["r2"] >= REDUNDANT or mean["cka"] >= REDUNDANT:
        return "weighted", f"redundant: the modalities predict each other ({evidence})"
    if mean["cca"] < RELATED and mean["r2"] < RELATED:
        return "concat", f"weakly related: hardly anything in common ({evidence})"
    return "bottleneck", f"complementary: partly the same, partly their own ({evidence})"
