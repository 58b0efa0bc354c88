"""Auxiliary losses in addition to the tasks': on features, on predictions, on parameters.

    total = sum_k w_k L_k + lambda sum_r alpha_r R_r

`model.regularisers` lists them, `model.regulariser_scale` is lambda. They are added outside
balancing; `balancing.auxiliaries="balanced"` makes them tasks like others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from mtmm_jax.fusion.alignment_losses import cca_loss, contrastive_loss, kl_loss
from mtmm_jax.registry import ConfigError, choose
from mtmm_jax.tasks.terms.domains import coral, mmd
from mtmm_jax.tasks.terms.term import Regulariser, Term, View, count_of, two

MEASURES = ("kl", "cca", "contrastive")


def agreement(
    *,
    between: Sequence[str],
    on: str = "features",
    measure: str = "kl",
    where: str = "regularisers",
) -> Regulariser:
    """Distance between two modalities' pooled features, or between two tasks' predictions.

    Args:
        between: two modalities, or two tasks whose predictions have the same shape `[B, C]`.
        on: "features" or "outputs".
        measure: "kl" (Jeffreys' divergence of their softmaxes), "cca" (one minus the mean canonical
            correlation, for features) or "contrastive" (InfoNCE both ways, for features).
        where: the place in the config.
    """
    choose(on, ("features", "outputs"), f"{where}.on")
    choose(measure, MEASURES if on == "features" else ("kl",), f"{where}.measure", "measure")
    one, other = two(between, where)

    def term(view: View) -> Term:
        if on == "outputs":
            both = view.present[one] & view.present[other]
            return kl_loss(view.predictions[one], view.predictions[other], both)
        x, y = view.tokens[one], view.tokens[other]
        both = x.present & y.present
        if measure == "kl":
            return kl_loss(x.mean(), y.mean(), both)
        loss = cca_loss if measure == "cca" else contrastive_loss
        return loss(x.mean(), y.mean(), both, axis_name=view.axis_name)

    names = (one, other)
    return Regulariser(term, **{"reads" if on == "features" else "tasks": names})


def orthogonality(*, between: Sequence[str], where: str = "regularisers") -> Regulariser:
    """mean over rows of cos(x, y)^2: what is shared and what is a modality's own do not repeat
    each other (after Bousmalis et al. 2016, row by row). Both must have one width.

    Args:
        between: two reads, such as `["fused", "image"]`.
        where: the place in the config.
    """
    one, other = two(between, where)

    def term(view: View) -> Term:
        x, y = (view.tokens[name] for name in (one, other))
        both = x.present & y.present
        x, y = (_unit(f.mean().astype(jnp.float32)) for f in (x, y))
        return jnp.where(both, (x * y).sum(-1) ** 2, 0.0).sum(), count_of(both)

    return Regulariser(term, reads=(one, other))


def sparsity(
    *, of: Sequence[str], on: str = "features", where: str = "regularisers"
) -> Regulariser:
    """The mean absolute value of features or of predictions.

    Args:
        of: reads, such as `["fused"]`, or tasks whose predictions are arrays.
        on: "features" or "outputs".
        where: the place in the config.
    """
    choose(on, ("features", "outputs"), f"{where}.on")
    names = _some(of, where)

    def term(view: View) -> Term:
        total, count = jnp.float32(0), jnp.float32(0)
        for name in names:
            if on == "features":
                x, rows = view.tokens[name].mean(), view.tokens[name].present
            else:
                x, rows = view.predictions[name], view.present[name]
            size = jnp.abs(x.astype(jnp.float32)).reshape(x.shape[0], -1).mean(-1)
            total += jnp.where(rows, size, 0.0).sum()
            count += count_of(rows)
        return total, count

    return Regulariser(term, **{"reads" if on == "features" else "tasks": names})


def smoothness(*, of: Sequence[str], where: str = "regularisers") -> Regulariser:
    """The mean squared difference of neighbouring tokens that are both there: slow features.

    Args:
        of: reads whose tokens are a sequence.
        where: the place in the config.
    """
    names = _some(of, where)

    def term(view: View) -> Term:
        total, count = jnp.float32(0), jnp.float32(0)
        for name in names:
            tokens = view.tokens[name]
            pair = tokens.mask[:, 1:] & tokens.mask[:, :-1]
            steps = jnp.diff(tokens.values.astype(jnp.float32), axis=1)
            total += jnp.where(pair, (steps**2).mean(-1), 0.0).sum()
            count += count_of(pair)
        return total, count

    return Regulariser(term, reads=names)


def distance(*, paths: Sequence[str], where: str = "regularisers") -> Regulariser:
    """sum_k |theta_k - mean theta|^2: the tasks' networks stay near each other: soft sharing.

    Args:
        paths: two or more subtrees of equal shapes, such as `["heads/a", "heads/b"]`.
        where: the place in the config.
    """
    names = _some(paths, where, least=2)

    def term(view: View) -> Term:
        stacked = _stacked(view.params, names, where)
        return _once(sum(((x - x.mean(0)) ** 2).sum() for x in stacked))

    return Regulariser(term, paths=names)


def trace_norm(*, paths: Sequence[str], where: str = "regularisers") -> Regulariser:
    """The sum of the singular values of [theta_1; ..; theta_K]: the tasks' networks span few
    directions (Yang & Hospedales 2017). Found from the K x K inner products.

    Args:
        paths: two or more subtrees of equal shapes.
        where: the place in the config.
    """
    names = _some(paths, where, least=2)

    def term(view: View) -> Term:
        rows = jnp.concatenate(
            [x.reshape(len(names), -1) for x in _stacked(view.params, names, where)], axis=1
        )
        gramian = rows @ rows.T
        # A root has no slope at zero: a floor far below what matters.
        floor = 1e-6 * jax.lax.stop_gradient(jnp.trace(gramian)) / len(names) + 1e-12
        values = jnp.linalg.eigvalsh(gramian + floor * jnp.eye(len(names), dtype=rows.dtype))
        return _once(jnp.sqrt(jnp.maximum(values, floor)).sum())

    return Regulariser(term, paths=names)


def _some(names: Sequence[str], where: str, least: int = 1) -> tuple[str, ...]:
    names = (names,) if isinstance(names, str) else tuple(names)
    if len(set(names)) < least:
        raise ConfigError(f"{where}: {names!r}: needs {least} or more different names")
    return names


def _unit(x: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt((x**2).sum(-1, keepdims=True) + 1e-12)


def _once(value: jax.Array) -> Term:
    """A term of the parameters alone: every device has it, and their counts divide it again."""
    return value, jnp.float32(1)


def _stacked(params: Mapping[str, Any], paths: Sequence[str], where: str) -> list[jax.Array]:
    """`[K, ...]` of each leaf of K subtrees."""
    trees = [subtree(params, path, where) for path in paths]
    shapes = [
        [(jax.tree_util.keystr(p), x.shape) for p, x in jax.tree_util.tree_leaves_with_path(t)]
        for t in trees
    ]
    for path, shape in zip(paths, shapes, strict=True):
        if shape != shapes[0]:
            raise ConfigError(
                f"{where}.paths: {path!r} and {paths[0]!r} differ in shape: "
                f"{sorted(set(shape) ^ set(shapes[0]))[:4]}"
            )
    return [
        jnp.stack([x.astype(jnp.float32) for x in leaves])
        for leaves in zip(*map(jax.tree.leaves, trees), strict=True)
    ]


def subtree(params: Mapping[str, Any], path: str, where: str) -> Any:
    """The parameters below a path; names the choices where there is none."""
    node = params
    for depth, key in enumerate(path.split("/")):
        here = "/".join(path.split("/")[:depth]) or "the parameters"
        if not isinstance(node, Mapping) or key not in node:
            found = ", ".join(node) if isinstance(node, Mapping) else "no more below"
            raise ConfigError(f"{where}.paths: {path!r}: no {key!r} in {here}; choices: {found}")
        node = node[key]
    return node


REGULARISERS = {
    "agreement": agreement,
    "orthogonality": orthogonality,
    "sparsity": sparsity,
    "smoothness": smoothness,
    "distance": distance,
    "trace_norm": trace_norm,
    "coral": coral,
    "mmd": mmd,
}
