"""Prepared TFDS data as records read in any order, from array_record or TFRecord files."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import mmap
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mtmm_jax.registry import ConfigError, choose

NEEDS_TENSORFLOW = 'needs TensorFlow, which is not installed: pip install "mtmm_jax[tf]"'
_FRAME = 8 + 4 + 4  # bytes around a TFRecord's data: length, its checksum, the data's checksum


class TFRecords:
    """The records of TFRecord files by number: an index of where each begins is made once.

    A record is its length (8 bytes), that length's checksum (4), the data, their checksum (4).
    """

    def __init__(self, files: Sequence[tuple[str, int, int]]) -> None:
        """`files` are (path, records to skip, records to take)."""
        self._maps, self._starts, self._lengths, self._file = [], [], [], []
        for i, (path, skip, take) in enumerate(files):
            with open(path, "rb") as file:
                data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self._maps.append(data)
            found = list(_frames(data, skip + take, path))[skip:]
            self._starts += [start for start, _ in found]
            self._lengths += [length for _, length in found]
            self._file += [i] * len(found)

    def __len__(self) -> int:
        return len(self._starts)

    def __getitems__(self, keys: Sequence[int]) -> list[bytes]:
        return [
            self._maps[self._file[k]][self._starts[k] : self._starts[k] + self._lengths[k]]
            for k in keys
        ]


def _frames(data: mmap.mmap, count: int, path: str) -> Iterator[tuple[int, int]]:
    at = 0
    for _ in range(count):
        if at + _FRAME > len(data):
            raise ConfigError(f"{path}: ends before its {count} records: prepare it anew")
        (length,) = struct.unpack_from("<Q", data, at)
        yield at + 12, length
        at += length + _FRAME


@contextlib.contextmanager
def readable(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Around what reads prepared data, of which damage raises anything: one line instead."""
    try:
        yield
    except (ConfigError, ImportError, MemoryError):
        raise
    except Exception as error:  # ParseError, RuntimeError, KeyError, struct.error, ..
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise ConfigError(
            f"{os.fspath(folder)}: prepared data are damaged ({reason}); delete this folder and "
            "prepare them anew"
        ) from error


@dataclasses.dataclass(frozen=True)
class Records:
    """Some features of one split, by the number of the example.

    Attributes:
        raw: the serialised examples.
        features: those that are read.
        decoders: what TFDS leaves encoded.
        spans: (file, first record, one past the last) of its parts.
    """

    raw: Any
    features: Any
    decoders: Mapping[str, Any]
    spans: tuple[tuple[str, int, int], ...] = ()

    def __len__(self) -> int:
        return len(self.raw)

    def read(self, keys: Sequence[int]) -> list[dict[str, Any]]:
        """Examples as nested dictionaries."""
        folder = os.path.dirname(self.spans[0][0]) if self.spans else "the prepared data"
        with readable(folder):
            records = self.raw.__getitems__([int(key) for key in keys])
            if not all(records):  # what array_record gives of a file that was cut
                raise ValueError("a record is empty")
            return [
                self.features.deserialize_example_np(record, decoders=self.decoders)
                for record in records
            ]

    def overlaps(self, other: Records) -> bool:
        """Whether an example is in both."""
        pairs = itertools.product(self.spans, other.spans)
        return any(a[0] == b[0] and a[1] < b[2] and b[1] < a[2] for a, b in pairs)


def open_builder(dataset: str, data_dir: str | None, prepare: bool, where: str) -> Any:
    """A TFDS builder whose data are there.

    Args:
        dataset: a name that TFDS knows, "name/config:version" included, or the folder of prepared
            data.
        data_dir: where TFDS keeps its data; its own default if None.
        prepare: whether to download and prepare (as array_record) what is not there.
    """
    try:
        import tensorflow_datasets as tfds

        if (Path(dataset) / "dataset_info.json").is_file():
            with readable(dataset):
                return tfds.builder_from_directory(os.fspath(dataset))
        try:
            builder = tfds.builder(dataset, data_dir=data_dir)
        except tfds.core.registered.DatasetNotFoundError as error:
            close = str(error).partition("Did you mean")[1:]
            hint = " ".join("".join(close).split())
            raise ConfigError(
                f"{where}.dataset: TFDS knows no {dataset!r}, and it is no folder of prepared data"
                f"{f'; {hint}' if hint else ''}"
            ) from error
        if not builder.is_prepared():
            if not prepare:
                raise ConfigError(
                    f"{where}: {dataset} is not prepared in {builder.data_dir}; "
                    "set prepare=True, or data_dir to where it is"
                )
            builder.download_and_prepare(file_format="array_record")
        return builder
    except ImportError as error:
        if "tensorflow" not in str(error).replace("tensorflow_datasets", ""):
            raise
        raise ConfigError(f"{where}: {dataset} {NEEDS_TENSORFLOW}") from error


def open_split(
    builder: Any, split: str, paths: Sequence[str], encoded: Sequence[str], where: str
) -> Records:
    """The examples of a split or a part of one, such as "train[:90%]".

    Args:
        paths: of the features to read, "a/b" for b inside a.
        encoded: of those pictures that are to stay encoded.
    """
    import tensorflow_datasets as tfds

    info = builder.info
    try:
        instructions = info.splits[split].file_instructions
    except (ValueError, KeyError, NotImplementedError) as error:
        raise ConfigError(
            f"{where}: {split!r} is no split of {info.name}; choices: {', '.join(info.splits)}, "
            "and parts of them such as train[:90%]"
        ) from error
    if not sum(part.take for part in instructions):
        raise ConfigError(f"{where}: {split!r} of {info.name} has no examples")
    choose(info.file_format.value, ("array_record", "tfrecord"), where, "file format")
    if info.file_format.value == "tfrecord":
        raw = TFRecords([(os.fspath(p.filename), p.skip, p.take) for p in instructions])
    else:
        with readable(builder.data_dir):
            raw = builder.as_data_source(
                split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
            )
    tops = dict.fromkeys(path.split("/")[0] for path in paths)
    features = tfds.features.FeaturesDict({name: info.features[name] for name in tops})
    return Records(
        raw,
        features,
        _tree(encoded, tfds.decode.SkipDecoding()),
        tuple((os.fspath(p.filename), p.skip, p.skip + p.take) for p in instructions),
    )


def _tree(paths: Sequence[str], leaf: Any) -> dict[str, Any]:
    """["a/b", "c"] -> {"a": {"b": leaf}, "c": leaf}."""
    tree: dict[str, Any] = {}
    for path in paths:
        *above, last = path.split("/")
        node = tree
        for part in above:
            node = node.setdefault(part, {})
        node[last] = leaf
    return tree
