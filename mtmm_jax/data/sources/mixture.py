"""Several data sets as one source: what one of them lacks is absent in its rows, never made up.

Modalities and labels of the same name are the same thing, and must agree; `rename` tells apart what
is not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from mtmm_jax.batch import Batch, Modality, Spec, Target, choose_all
from mtmm_jax.data.pipeline.mixing import Mixing
from mtmm_jax.data.pipeline.source import SPLITS, Source, weighted
from mtmm_jax.registry import ConfigError, choose

ORIGIN = "origin"  # the target that names the source of a row
_BITS = 40  # of a row's number within its own source


def rename(source: Source, names: Mapping[str, str]) -> Source:
    """The same source with other names for modalities and targets."""
    known = [*source.spec.modalities, *source.spec.targets]
    for old in names:
        choose(old, known, f"data.{source.name}.rename", "modality or target")
    new = [names.get(name, name) for name in known]
    for name in new:
        if new.count(name) > 1:
            raise ConfigError(f"data.{source.name}.rename: two things would be called {name!r}")

    def renamed(entries: Mapping[str, Any]) -> dict[str, Any]:
        return {names.get(name, name): entry for name, entry in entries.items()}

    def compose(rows: np.ndarray, chance: np.ndarray | None) -> Batch:
        batch = source.compose(rows, chance)
        parts = {key: renamed(batch[key]) for key in ("inputs", "targets")}
        return {**batch, **parts}

    targets = {
        name: dataclasses.replace(t, made_from=tuple(names.get(m, m) for m in t.made_from))
        for name, t in source.spec.targets.items()
    }
    suffix = ".tokenizer.json"
    assets = {
        names.get(name.removesuffix(suffix), name.removesuffix(suffix)) + suffix
        if name.endswith(suffix)
        else name: content
        for name, content in source.assets.items()
    }
    spec = Spec(renamed(source.spec.modalities), renamed(targets))
    return dataclasses.replace(source, spec=spec, compose=compose, assets=assets)


def keep(source: Source, names: Sequence[str], where: str) -> Source:
    """The same source with some of its modalities, as if it never had the others."""
    names = (names,) if isinstance(names, str) else tuple(names)
    choose_all(names, source.spec.modalities, where, "modality")
    if not names:
        raise ConfigError(f"{where}: is empty; choices: {', '.join(source.spec.modalities)}")

    def compose(rows: np.ndarray, chance: np.ndarray | None) -> Batch:
        batch = source.compose(rows, chance)
        return {**batch, "inputs": {name: batch["inputs"][name] for name in names}}

    targets = {
        name: dataclasses.replace(t, made_from=tuple(m for m in t.made_from if m in names))
        for name, t in source.spec.targets.items()
    }
    spec = Spec({name: source.spec.modalities[name] for name in names}, targets)
    return dataclasses.replace(source, spec=spec, compose=compose)


def mix(
    sources: Mapping[str, Source],
    mixing: Mixing,
    where: str = "data",
    *,
    origin: bool = False,
    trained: Sequence[str] | None = None,
    held: Sequence[str] | None = None,
) -> Source:
    """One source out of several.

    Rows are drawn from the train splits as `mixing` says; validation and test hold all rows of
    all sources. With `mixing.per == "step"` a training batch has
    only the modalities and targets of its source, so a step is compiled once for each source and
    computes nothing in vain.

    Args:
        sources: name -> source.
        mixing: how they share the training batches.
        where: the place in the config.
        origin: whether a target `ORIGIN` names the source of each row, its classes their names.
        trained: the sources whose training rows are drawn; all by default.
        held: the sources whose validation and test rows count; all by default.
    """
    if not sources:
        raise ConfigError(f"{where}.sources: is empty; name one or more")
    for name, source in sources.items():
        if source.parts:
            raise ConfigError(f"{where}.sources.{name}: has parts of its own, which mix only once")
        if origin and ORIGIN in source.spec.targets:
            raise ConfigError(
                f"{where}.sources.{name}: has a target {ORIGIN!r} of its own; call it something "
                "else with `rename`"
            )
    seen = _some(trained, sources, f"{where}.trained")
    held = _some(held, sources, f"{where}.held")
    origins = _origin(sources, seen) if origin else {}
    built = tuple(sources.values())
    codes = [
        {split: (np.int64(i) << _BITS) + s.rows[split] for split in s.rows}
        for i, s in enumerate(built)
    ]
    return Source(
        name="+".join(sources),
        spec=Spec(
            _union([s.spec.modalities for s in built], _same_modality, sources, where),
            _union([{**s.spec.targets, **origins} for s in built], _joined_target, sources, where),
        ),
        rows={
            split: np.concatenate(found)
            for split in SPLITS
            if (
                found := [
                    own[split]
                    for name, own in zip(sources, codes, strict=True)
                    if split in own and name in (seen if split == "train" else held)
                ]
            )
        },
        compose=_Composer(built, mixing.per, origin),
        draws=max(s.draws for s in built),
        assets=_assets(sources, where),
        describe=lambda id: built[id % len(built)].describe(id // len(built)),
        picture=lambda id: _picture(built[id % len(built)], id // len(built)),
        seed=built[0].seed,
        parts=tuple(own["train"] for name, own in zip(sources, codes, strict=True) if name in seen),
        mixing=mixing,
        carries=tuple(
            Spec(s.spec.modalities, {**s.spec.targets, **origins})
            for name, s in sources.items()
            if name in seen
        ),
        prepare=lambda: [source.prepare() for source in built] and None,
    )


def _some(
    names: Sequence[str] | None, sources: Mapping[str, Source], where: str
) -> tuple[str, ...]:
    """Some of the sources by name, or all of them."""
    if names is None:
        return tuple(sources)
    names = (names,) if isinstance(names, str) else tuple(names)
    choose_all(names, sources, where, "source")
    if not names:
        raise ConfigError(f"{where}: is empty; choices: {', '.join(sources)}")
    return names


def _origin(sources: Mapping[str, Source], seen: Sequence[str]) -> dict[str, Target]:
    """The target that names the source of a row; it is no part of any input."""
    sizes = np.array([s.size if name in seen else 0 for name, s in sources.items()], np.float64)
    frequencies = tuple((sizes / sizes.sum()).tolist())
    return {ORIGIN: Target("class", classes=tuple(sources), frequencies=frequencies)}


def _picture(source: Source, id: int) -> np.ndarray:
    if source.picture is None:
        return np.full((8, 8, 3), 255, np.uint8)
    return source.picture(id)


def _own_tokenizers(source: Source) -> dict[str, bytes]:
    """A source's assets, with the tokenizer of all its texts as one for each of them."""
    assets = dict(source.assets)
    tokenizer = assets.pop("tokenizer.json", None)
    texts = [name for name, m in source.spec.modalities.items() if m.is_a("text")]
    own = {f"{name}.tokenizer.json": tokenizer for name in texts if tokenizer}
    return own | assets


def _assets(sources: Mapping[str, Source], where: str) -> dict[str, bytes]:
    assets: dict[str, bytes] = {}
    for name, source in sources.items():
        for file, content in _own_tokenizers(source).items():
            if assets.setdefault(file, content) != content:
                raise ConfigError(
                    f"{where}.sources.{name}: its {file} differs from that of another source; "
                    "give its modality another name with `rename`"
                )
    return assets


def _union(
    parts: Sequence[Mapping[str, Any]],
    join: Callable[[Any, Any], Any],
    names: Mapping[str, Any],
    where: str,
) -> dict[str, Any]:
    """All entries; those of the same name joined, or refused."""
    found: dict[str, Any] = {}
    for source, entries in zip(names, parts, strict=True):
        for name, entry in entries.items():
            joined = join(found[name], entry) if name in found else entry
            if joined is None:
                raise ConfigError(
                    f"{where}.sources.{source}: its {name!r} is {entry}, and another source's is "
                    f"{found[name]}; they must agree, or bear different names (`rename`)"
                )
            found[name] = joined
    return found


def _same_modality(a: Modality, b: Modality) -> Modality | None:
    return a if a == b else None


def _joined_target(a: Target, b: Target) -> Target | None:
    """Statistics may differ between sources; those of the first one hold."""
    what = ("kind", "classes", "made_from", "length", "rate", "shape")
    return a if all(getattr(a, key) == getattr(b, key) for key in what) else None


class _Composer:
    """Rows of several sources -> one batch."""

    def __init__(self, sources: Sequence[Source], per: str, origin: bool = False) -> None:
        self.sources, self.per, self.origin = sources, per, origin
        plain = [s.compose(s.rows["train"][:1], None) for s in sources]
        self.templates = {
            key: {name: entry for batch in plain for name, entry in batch[key].items()}
            for key in ("inputs", "targets")
        }

    def __call__(self, rows: np.ndarray, chance: np.ndarray | None) -> Batch:
        which, own = rows >> _BITS, rows & ((1 << _BITS) - 1)
        batches, places = [], []
        for i in np.unique(which):
            source, here = self.sources[i], np.flatnonzero(which == i)
            drawn = None if chance is None or not source.augment else chance[here, : source.draws]
            batch = weighted(source.compose(own[here], drawn))
            batches.append({**batch, "id": batch["id"] * len(self.sources) + i})
            places.append(here)
        if len(batches) == 1 and self.per == "step":
            return self._with_origin(batches[0], which)
        order = np.argsort(np.concatenate(places), kind="stable")
        joined: Batch = {
            key: np.concatenate([batch[key] for batch in batches])[order].astype(dtype)
            for key, dtype in (("id", np.int32), ("weight", np.float32))
        }
        for key, template in self.templates.items():
            joined[key] = {
                name: _join([b[key].get(name) for b in batches], places, entry, order)
                for name, entry in template.items()
            }
        return self._with_origin(joined, which)

    def _with_origin(self, batch: Batch, which: np.ndarray) -> Batch:
        """With the source of each row as a label, if that is wanted."""
        if not self.origin:
            return batch
        label = {"y": which.astype(np.int32), "present": np.ones(len(which), bool)}
        return {**batch, "targets": {**batch["targets"], ORIGIN: label}}


def _join(
    parts: Sequence[Any], places: Sequence[np.ndarray], template: Any, order: np.ndarray
) -> Any:
    """One modality or target of the sources that have it, and blanks for the others."""

    def blank(count: int) -> Any:
        return jax.tree.map(lambda x: np.zeros((count, *x.shape[1:]), x.dtype), template)

    whole = [
        blank(len(here)) if part is None else part for part, here in zip(parts, places, strict=True)
    ]
    return jax.tree.map(lambda *leaves: _stack(leaves)[order], *whole)


def _stack(leaves: Sequence[np.ndarray]) -> np.ndarray:
    """Concatenated along the rows; shorter ones padded with zeros."""
    shape = tuple(max(sizes) for sizes in zip(*(x.shape[1:] for x in leaves), strict=True))
    wide = [
        x
        if x.shape[1:] == shape
        else np.pad(x, [(0, 0), *((0, n - m) for n, m in zip(shape, x.shape[1:], strict=True))])
        for x in leaves
    ]
    return np.concatenate(wide)
