"""Rules by parameter path: learning-rate factors, freezing, weight decay, rates by depth.

A rule is a regex that the whole path matches, such as `encoders/image/.*`. Where several rules
match one path, the first decides. What is frozen is neither decayed nor moved, whatever else
matches.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import optax

from mtmm_jax.model import Rewrite
from mtmm_jax.paths import by_path as by_path
from mtmm_jax.paths import matches, regexes, some
from mtmm_jax.ranges import Between, Positive, mismatch
from mtmm_jax.registry import ConfigError
from mtmm_jax.registry import check as check_value

PyTree = Any
KEYS = ("rates", "freeze", "decay", "no_decay", "depth_decay", "unfreeze", "prune")
# Parts of an encoder that stand after its numbered ones; all others without a number come before.
TOP = ("norm", "out_norm", "project")


class PathRules(NamedTuple):
    """Optimiser options that differ from path to path.

    Attributes:
        rates: (regex, factor of the learning rate), the first match decides, 1 without one.
        freeze: regexes of what does not move, nor is kept any state of.
        decay: regexes of what weight decay acts on; None: matrices, that is all leaves with more
            than one dimension. Norms, biases and single numbers pulled to zero are no
            regularisation.
        no_decay: regexes of exceptions.
        depth_decay: see `depth_factors`; None: no.
    """

    rates: tuple[tuple[str, float], ...] = ()
    freeze: tuple[str, ...] = ()
    decay: tuple[str, ...] | None = None
    no_decay: tuple[str, ...] = ()
    depth_decay: float | None = None


def read(config: dict[str, Any], where: str = "optimizer") -> PathRules:
    """Takes the keys of `KEYS` out of `config`.

    `rates` is a mapping or, as config files need it (a ConfigDict has no dots in its keys, and
    sorts them), pairs: `[["encoders/text/.*", 0.1], ["encoders/.*", 0.5]]`.
    """
    rates = config.pop("rates", None) or ()
    check_value(rates, Mapping[str, Any] | Sequence[Any], f"{where}.rates")
    pairs = list(rates.items()) if isinstance(rates, Mapping) else list(rates)
    for i, pair in enumerate(pairs):
        at = f"{where}.rates[{i}]"
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise ConfigError(f"{at}: {pair!r} is not a pair of a regex and a factor")
        regexes([pair[0]], at)
        factor = pair[1]
        if (wanted := mismatch(factor, Positive)) is not None:
            raise ConfigError(f"{at}: {factor!r} is not {wanted}; to stop, use freeze")
    decay = config.pop("decay", None)
    depth = config.pop("depth_decay", None)
    check_value(depth, Between | None, f"{where}.depth_decay")
    return PathRules(
        rates=tuple((pattern, float(factor)) for pattern, factor in pairs),
        freeze=regexes(config.pop("freeze", ()), f"{where}.freeze"),
        decay=None if decay is None else regexes(decay, f"{where}.decay"),
        no_decay=regexes(config.pop("no_decay", ()), f"{where}.no_decay"),
        depth_decay=depth,
    )


def _paths(tree: PyTree) -> list[str]:
    return jax.tree.leaves(by_path(lambda path, _: path, tree))


def check(rules: PathRules, params: PyTree, where: str = "optimizer") -> None:
    """Raises a `ConfigError` for a rule that does nothing with these parameters."""
    paths = _paths(params)
    shown = some(paths)
    lists = {
        "rates": [pattern for pattern, _ in rules.rates],
        "freeze": rules.freeze,
        "decay": rules.decay or (),
        "no_decay": rules.no_decay,
    }
    for key, patterns in lists.items():
        for i, pattern in enumerate(patterns):
            mine = [path for path in paths if re.fullmatch(pattern, path)]
            if not mine:
                raise ConfigError(f"{where}.{key}: {pattern!r} matches none of: {shown}")
            if key == "rates" and all(matches(patterns[:i], path) for path in mine):
                raise ConfigError(
                    f"{where}.rates: {pattern!r} comes after rules that match all that it does"
                )
    if rules.freeze and all(matches(rules.freeze, path) for path in paths):
        raise ConfigError(f"{where}.freeze: {list(rules.freeze)} leaves nothing to train")
    if rules.depth_decay is not None and not any(map(_level, paths)):
        raise ConfigError(
            f"{where}.depth_decay: no encoder here has numbered blocks; use rates; paths: {shown}"
        )


def decayed(rules: PathRules) -> Callable[[PyTree], PyTree]:
    """The mask of weight decay, as Optax takes it: parameters -> tree of bools."""

    def one(path: str, leaf: Any) -> bool:
        mine = leaf.ndim > 1 if rules.decay is None else matches(rules.decay, path)
        return mine and not matches(rules.no_decay, path)

    return lambda params: by_path(one, params)


def frozen(rules: PathRules) -> Callable[[PyTree], PyTree]:
    """Parameters -> tree of bools: what does not move."""
    return lambda params: by_path(lambda path, _: matches(rules.freeze, path), params)


def held(patterns: Iterable[str]) -> Rewrite:
    """Frozen parameters as constants: no step computes a gradient for them, nor does balancing
    weigh it."""

    def apply(params: PyTree) -> PyTree:
        return by_path(
            lambda path, leaf: jax.lax.stop_gradient(leaf) if matches(patterns, path) else leaf,
            params,
        )

    return Rewrite("held", lambda key, params: {}, apply)


def _level(path: str) -> tuple[int, ...]:
    """The numbers of an encoder's part: `encoders/image/stage2_block1/...` -> (2, 1)."""
    parts = path.split("/")
    if len(parts) < 3 or parts[0] != "encoders":
        return ()
    return tuple(int(number) for number in re.findall(r"\d+", parts[2]))


def depth_factors(paths: Iterable[str], decay: float) -> dict[str, float]:
    """Layer-wise rates, `decay^(layers above)` (Clark et al. 2020; Bao et al. 2022).

    In each encoder, `encoders/<name>`, parts with numbers (`block3`, `stage2_block1`, `conv1` with
    its `norm1`) are the layers 1..L in the order of their numbers. Parts without a number are layer
    0 (embeddings, patches, positions), but for `TOP`, which is layer L + 1. A parameter of layer l
    has the factor `decay^(L + 1 - l)`. Everything outside the encoders, and an encoder that
    numbers nothing, has the factor 1.

    Use it: when pretrained encoders are tuned: what is low is general. Typical: .65 to .9.
    """
    paths = list(paths)
    levels: dict[str, set[tuple[int, ...]]] = {}
    for path in paths:
        if level := _level(path):
            levels.setdefault(path.split("/")[1], set()).add(level)
    order = {name: sorted(found) for name, found in levels.items()}

    def factor(path: str) -> float:
        room, name, part, *_ = [*path.split("/"), "", ""]
        if room != "encoders" or name not in order or part in TOP:
            return 1.0
        level = _level(path)
        below = order[name].index(level) + 1 if level else 0
        return decay ** (len(order[name]) + 1 - below)

    return {path: factor(path) for path in paths}


def scale_by_path(rules: PathRules) -> optax.GradientTransformation:
    """Multiplies updates by `rates` times the factor of `depth_decay`; stands after the rate.

    An optimiser's whole update is proportional to its learning rate, decoupled decay included
    (not Adafactor's), so this is exactly another learning rate.
    """

    def update(updates: PyTree, params: PyTree) -> PyTree:
        del params
        depth = {}
        if rules.depth_decay is not None:
            depth = depth_factors(_paths(updates), rules.depth_decay)

        def one(path: str, leaf: Any) -> Any:
            own = next((f for pattern, f in rules.rates if re.fullmatch(pattern, path)), 1.0)
            return leaf * (own * depth.get(path, 1.0))

        return by_path(one, updates)

    return optax.stateless(update)
