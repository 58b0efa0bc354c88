"""Any TFDS data set as a `Source`, by a mapping from its features to modalities and targets.

    tfds(
        "mnist",
        modalities={"image": {"feature": "image", "pipe": "decode|resize(32)|normalize(half)"}},
        targets={"digit": {"feature": "label"}},
    )

No TensorFlow is needed to read prepared data, be they array_record or TFRecord files. Preparing
needs it only where the data set's own TFDS code does.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mtmm_jax.batch import Batch, Spec, Target
from mtmm_jax.chance import bits
from mtmm_jax.data.pipeline.source import SPLITS, Source
from mtmm_jax.data.sources.tfds.fields import Input, inputs, with_tokenizers
from mtmm_jax.data.sources.tfds.labels import Label, entry, labels
from mtmm_jax.data.sources.tfds.records import Records, open_builder, open_split
from mtmm_jax.data.transforms.image import picture as decoded
from mtmm_jax.ranges import Natural
from mtmm_jax.registry import ConfigError, choose
from mtmm_jax.text import Tokenizers

_HELD_OUT = 0.1  # of the training examples, for a split that the data set does not have
_ENOUGH = 100_000  # examples from which a tokenizer or a column's statistics are learned


def tfds(
    dataset: str,
    *,
    modalities: Mapping[str, Any],
    targets: Mapping[str, Any],
    splits: Mapping[str, str] | None = None,
    data_dir: str | None = None,
    prepare: bool = True,
    augment: bool = True,
    seed: Natural = 0,
    where: str = "data.tfds",
    tokenizers: Tokenizers = None,
) -> Source:
    """A TFDS data set.

    Costs TFDS's preparation, once. Use it: for data sets of TensorFlow Datasets that are prepared
    on disk. Not: without `tensorflow-datasets`' files.

    Args:
        dataset: its name in TFDS, as "mnist" or "name/config:version", or a folder of prepared
            data.
        modalities: name -> `feature` (its path, "a/b" for b inside a; for a table one or several),
            `pipe` (see `pipes.py`), and where they do not follow from the feature, `kind` (image,
            audio, text, table, series) and `rate` (of audio and series).
        targets: name -> `feature`, `kind` where it does not follow from it (class, number, labels,
            tokens, boxes), `made_from` (the modalities it can be read off), and as the kind has it
            `classes`, `pipe`, `length`, `box`, `label`.
        splits: train, validation, test -> a TFDS split or a part of one, "train[:90%]". The
            splits of these names by default. Without a validation or test split, a tenth of the
            training examples is held out for it, the same for every seed.
        data_dir: where TFDS keeps its data; `$TFDS_DATA_DIR` or `~/tensorflow_datasets`.
        prepare: whether to download and prepare data that are not there yet.
        augment: whether training batches are augmented.
        seed: of shuffling and augmentation.
        where: the place in the config.
        tokenizers: given by `data.build`: of some texts, by modality; `tokenize` takes them.
    """
    builder = open_builder(dataset, data_dir, prepare, where)
    features = builder.info.features
    read = with_tokenizers(inputs(modalities, features, f"{where}.modalities"), tokenizers or {})
    wanted = labels(targets, features, f"{where}.targets")
    for name, section in targets.items():
        for modality in section.get("made_from", ()):
            choose(modality, read, f"{where}.targets.{name}.made_from", "modality")
    names = _splits(splits, builder.info.splits, f"{where}.splits")
    encoded = sorted({path for field in read.values() for path in field.encoded})

    def records(split: str, fields: Iterable[Input | Label]) -> Records:
        paths = sorted({path for field in fields for path in field.paths})
        skip = [path for path in encoded if path in paths]
        return open_split(builder, names[split], paths, skip, f"{where}.splits.{split}")

    parts = {split: records(split, (*read.values(), *wanted.values())) for split in names}
    for split, part in parts.items():
        if split != "train" and part.overlaps(parts["train"]):
            raise ConfigError(
                f"{where}.splits: {names[split]!r} ({split}) and {names['train']!r} (train) have "
                "examples in common"
            )
    rows = _rows({split: len(part) for split, part in parts.items()})
    to_fit = {name: field for name, field in read.items() if field.pipe.unfitted}
    learning = records("train", (*to_fit.values(), *wanted.values()))
    written = {"inputs": modalities, "targets": targets, "split": names["train"]}
    folder = Path(builder.data_dir)
    fitted = sorted(set(read) - set(to_fit)) if tokenizers else []
    digest = _digest([builder.info.full_name, len(rows["train"]), _HELD_OUT, written, *fitted])
    known = _kept(
        folder / f"mtmm_jax-{digest}.json",
        lambda: _learn(learning, rows["train"], to_fit, wanted),
    )
    mapped = Mapped(
        parts=tuple(parts.items()),
        inputs={
            name: dataclasses.replace(
                field, pipe=field.pipe.restore(_numbered(known["pipes"][name]))
            )
            if name in to_fit
            else field
            for name, field in read.items()
        },
        labels=wanted,
        targets=Spec.from_dict({"modalities": {}, "targets": known["targets"]}).targets,
        kept=known["kept"],
    )
    return Source(
        name="tfds",
        spec=mapped.spec,
        rows=rows,
        compose=mapped.compose,
        draws=sum(field.pipe.draws for field in mapped.inputs.values()),
        assets=_assets(mapped.inputs),
        describe=mapped.describe,
        picture=mapped.picture if mapped.first_image else None,
        augment=augment,
        seed=seed,
    )


@dataclasses.dataclass(frozen=True)
class Mapped:
    """A data set's splits, end to end, read by a mapping; a row is a place among them.

    Attributes:
        parts: (our split, its records).
        inputs, labels: the mapping, with pipes that are ready.
        targets: what is known of the labels.
        kept: what their coders need besides.
    """

    parts: tuple[tuple[str, Records], ...]
    inputs: Mapping[str, Input]
    labels: Mapping[str, Label]
    targets: Mapping[str, Target]
    kept: Mapping[str, str]

    @property
    def spec(self) -> Spec:
        return Spec({name: f.pipe.modality() for name, f in self.inputs.items()}, self.targets)

    @functools.cached_property
    def _coders(self) -> dict[str, Callable[[Any], Any]]:
        return {
            name: label.coder(self.targets[name], self.kept[name])
            for name, label in self.labels.items()
        }

    @functools.cached_property
    def _bounds(self) -> np.ndarray:
        return np.cumsum([0, *(len(records) for _, records in self.parts)])

    @property
    def first_image(self) -> str | None:
        forms = {name: field.pipe.out for name, field in self.inputs.items()}
        return next((name for name, form in forms.items() if form.is_a("image")), None)

    def examples(self, rows: np.ndarray) -> list[dict[str, Any]]:
        """In the order of the rows."""
        which = np.searchsorted(self._bounds, rows, side="right") - 1
        out: list[Any] = [None] * len(rows)
        for i in np.unique(which):
            here = np.flatnonzero(which == i)
            found = self.parts[i][1].read(rows[here] - self._bounds[i])
            for place, example in zip(here, found, strict=True):
                out[place] = example
        return out

    def compose(self, rows: np.ndarray, chance: np.ndarray | None) -> Batch:
        found, at = self.examples(rows), 0
        batch: Batch = {"inputs": {}, "targets": {}, "id": np.asarray(rows, np.int32)}
        for name, field in self.inputs.items():
            own = None if chance is None else chance[:, at : at + field.pipe.draws]
            at += field.pipe.draws
            batch["inputs"][name] = field.pipe.entry([field.value(e) for e in found], own)
        for name, label in self.labels.items():
            values = [label.value(e) for e in found]
            batch["targets"][name] = entry(self.targets[name], self._coders[name], values)
        return batch

    def describe(self, id: int) -> str:
        """The place of an example, and its classes, numbers and texts."""
        (example,) = self.examples(np.array([id]))
        part = int(np.searchsorted(self._bounds, id, side="right")) - 1
        parts = []
        for name, label in self.labels.items():
            value, target = label.value(example), self.targets[name]
            if target.traits.discrete and value is not None:
                index = self._coders[name](value)
                value = value if index is None else target.classes[index]
            if value is None or isinstance(value, int | float | str):
                parts.append(f"{name} {'unknown' if value is None else value}")
        place = f"{self.parts[part][0]} {id - self._bounds[part]}"
        return f"{place}: {', '.join(parts)}" if parts else place

    def picture(self, id: int) -> np.ndarray:
        """The first image modality's picture in its own size; white where there is none."""
        value = self.inputs[self.first_image].value(self.examples(np.array([id]))[0])
        if value is None:
            return np.full((*self.inputs[self.first_image].pipe.out.shape[:2], 3), 255, np.uint8)
        return decoded(value, "picture") if isinstance(value, bytes) else value


def _splits(given: Mapping[str, str] | None, found: Iterable[str], where: str) -> dict[str, str]:
    """Our split -> theirs, of those that there are."""
    if given is None:
        names = {split: split for split in SPLITS if split in found}
    else:
        for split in given:
            choose(split, SPLITS, where, "split")
        names = {split: str(given[split]) for split in SPLITS if split in given}
    if "train" not in names:
        raise ConfigError(
            f"{where}: needs a split to train on, such as {{'train': '...'}}; "
            f"the data set has: {', '.join(found)}"
        )
    return names


def _rows(sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Split -> its rows; a split that the data set does not have gets a tenth of train."""
    starts = np.cumsum([0, *sizes.values()])
    rows = {
        split: np.arange(start, start + size)
        for (split, size), start in zip(sizes.items(), starts, strict=False)
    }
    missing = [split for split in SPLITS if split not in rows]
    order = rows["train"][np.argsort(bits(np.arange(sizes["train"])), kind="stable")]
    share = max(int(_HELD_OUT * sizes["train"]), 1)
    for i, split in enumerate(missing):
        rows[split] = np.sort(order[i * share : (i + 1) * share])
    rows["train"] = np.sort(order[len(missing) * share :])
    if not len(rows["train"]):
        raise ConfigError(f"data.tfds: {sizes['train']} training examples are too few to share")
    return {split: rows[split] for split in SPLITS}


def _learn(
    records: Records, rows: np.ndarray, to_fit: Mapping[str, Input], wanted: Mapping[str, Label]
) -> dict[str, Any]:
    """One pass over the training examples: what pipes and targets must know of them, as JSON."""
    values: dict[str, list[Any]] = {name: [] for name in wanted}
    seen: dict[str, list[Any]] = {name: [] for name in to_fit}
    for chunk in np.array_split(rows, max(len(rows) // 1024, 1)):
        for example in records.read(chunk):
            for name, label in wanted.items():
                values[name].append(label.value(example))
            for name, field in to_fit.items():
                if len(seen[name]) < _ENOUGH:
                    seen[name].append(field.value(example))
    learned = {
        name: label.learn([v for v in values[name] if v is not None])
        for name, label in wanted.items()
    }
    states = {
        name: field.pipe.fit([v for v in seen[name] if v is not None]).state
        for name, field in to_fit.items()
    }
    return {
        "targets": {name: dataclasses.asdict(target) for name, (target, _) in learned.items()},
        "kept": {name: kept for name, (_, kept) in learned.items()},
        "pipes": states,
    }


def _kept(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The result of `make`, as JSON that is kept at `path` if it can be written."""
    with contextlib.suppress(OSError, ValueError):
        return json.loads(path.read_text())
    text = json.dumps(make())
    with contextlib.suppress(OSError):
        own = path.with_name(f"{path.name}.{os.getpid()}")
        own.write_text(text)
        own.replace(path)
    return json.loads(text)


def _digest(what: Any) -> str:
    return hashlib.sha256(json.dumps(what, sort_keys=True, default=list).encode()).hexdigest()[:16]


def _numbered(state: Mapping[str, str]) -> dict[int, str]:
    return {int(i): kept for i, kept in state.items()}


def _assets(fields: Mapping[str, Input]) -> dict[str, bytes]:
    """The pipes as JSON (`Pipe.from_dict`), and the texts' tokenizers."""
    pipes = {name: field.pipe.to_dict() for name, field in fields.items()}
    assets = {"pipes.json": json.dumps(pipes).encode()}
    for name, field in fields.items():
        if field.pipe.out.is_a("text"):
            own = next(iter(field.pipe.state.values())).encode()
            if assets.setdefault("tokenizer.json", own) != own:
                assets[f"{name}.tokenizer.json"] = own
    return assets
