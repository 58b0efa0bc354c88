"""Files of a manifest decoded once, before training, and read from shards from then on.

A column's shards lie in `<root>/<digest>/`, where the digest covers the folder of the manifest, the
column's options, the limits and the versions of what decodes. A file whose path, size or time of
change differs is decoded anew.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mtmm_jax.data.sources import packed
from mtmm_jax.data.sources.manifest import eviction
from mtmm_jax.data.sources.manifest.progress import progress, say
from mtmm_jax.data.sources.manifest.shards import (
    VERSION,
    Damaged,
    Record,
    Shard,
    delete,
    open_shard,
    write_shard,
)
from mtmm_jax.devices.machine import cores
from mtmm_jax.readers.decoder import Decoder
from mtmm_jax.readers.files import Folder
from mtmm_jax.readers.limits import Limits, Unreadable
from mtmm_jax.registry import ConfigError

Where = Literal[False] | str | None
"""The folder of decoded files; None: below the cache; False: files are decoded in every epoch."""

_SHARD_BYTES = 2**25
_SHARD_SECONDS = 10.0  # of work that a kill may cost, and between two lines of progress


def default_root() -> Path:
    return packed.cache() / "decoded"


@dataclasses.dataclass(eq=False)
class Decoded:
    """The columns of a manifest that name files to decode.

    Attributes:
        folder: in which those files lie.
        limits: under which they are decoded.
        where: `data.decoded`.
        columns: filled by `once`.
    """

    folder: Folder
    limits: Limits
    where: Where = None
    columns: list[DecodedColumn] = dataclasses.field(default_factory=list)

    def once(self, column: str, cells: Sequence[Any], decoder: Decoder) -> Callable[[str], Any]:
        """name -> the decoded file: from its file until `fill` has been called, then from a shard.

        Args:
            column: of the manifest, for messages.
            cells: names of files, or None.
            decoder: of the column.
        """
        if self.where is False:
            return decoder.now
        about = {
            "version": VERSION,
            "root": self.folder.root,
            "limits": dataclasses.asdict(self.limits),
            "kind": decoder.kind,
            **decoder.options,
        }
        digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
        root = default_root() if self.where is None else Path(self.where).expanduser()
        names = tuple(dict.fromkeys(name for name in cells if name is not None))
        shared = self.where is None
        self.columns.append(
            DecodedColumn(column, root / digest, names, self.folder, decoder, shared)
        )
        return self.columns[-1].read

    def fill(self) -> None:
        """Decodes what no shard holds yet.

        Raises:
            ConfigError: where the folder that the config names cannot be written; the default
                folder costs one line, and files are decoded when they are read.
        """
        for column in self.columns:
            try:
                column.fill()
            except OSError as error:
                line = (
                    f"data.decoded: cannot write to {column.path}: {error.strerror or error}; name "
                    "a folder with room, or False to decode files in every epoch"
                )
                if self.where is not None:
                    raise ConfigError(line) from error
                say(line)


@dataclasses.dataclass(eq=False)
class DecodedColumn:
    """The files of one column, and the shards in `path` that hold them decoded.

    In a `shared` folder the columns used longest ago give way where the disk has no room for more.
    """

    name: str
    path: Path
    names: tuple[str, ...]
    folder: Folder
    decoder: Decoder
    shared: bool = False
    found: dict[str, tuple[Shard, Record]] = dataclasses.field(default_factory=dict)
    lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)
    full: bool = False

    def read(self, name: str) -> Any:
        """A file as `decoder.decode` gives it, `Unreadable` included."""
        if name not in self.found:
            return self.decoder.now(name)
        shard, record = self.found[name]
        if not record.stored:
            return self.decoder.now(name)
        if record.reason:
            raise Unreadable(record.reason, record.about)
        return self.decoder.unpack(record.meta, shard.array(record))

    def fill(self) -> None:
        """Opens the shards, checks them and decodes what they lack; once for each source."""
        with self.lock:
            if self.full or not self.names:
                return
            files = self._files()
            self.path.mkdir(parents=True, exist_ok=True)
            with _alone(self.path):
                eviction.mark_used(self.path, self.folder.root)
                self.found |= self._opened(files)
                missing = {name: files[name] for name in files if name not in self.found}
                if missing and self.shared:
                    eviction.make_room(self.path)
                if missing:
                    self._decode(missing)
            self.full = True

    def _files(self) -> dict[str, tuple[int, int]]:
        """Size and time of change of the files that there are."""
        files = {}
        for name in self.names:
            with contextlib.suppress(Unreadable):  # its reason is reported with its row
                files[name] = self.folder.stat(name)
        return files

    def _opened(self, files: Mapping[str, tuple[int, int]]) -> dict[str, tuple[Shard, Record]]:
        """The records of unchanged files. Damaged shards and those of changed files are deleted."""
        found = {}
        for index in sorted(self.path.glob("*.json")):
            try:
                shard = open_shard(index)
            except Damaged as error:
                say(f"{index}: {error}; its files are decoded anew")
                delete(index)
                continue
            fresh = {n: (shard, r) for n, r in shard.records.items() if files.get(n) == r.file}
            if not fresh and shard.records.keys() <= files.keys():
                shard.delete()
            found |= fresh
        for rest in (*self.path.glob("*.part"), *self.path.glob("*.bin")):  # of a killed process
            if rest.suffix == ".part" or not rest.with_suffix(".json").exists():
                rest.unlink(missing_ok=True)
        return found

    def _decode(self, files: Mapping[str, tuple[int, int]]) -> None:
        threads = len(cores())
        what = f"{len(files):,} files of column {self.name!r}"
        say(f"decoding {what} once, into {self.path} ({threads} threads)")
        records, arrays, size, bad = {}, [], 0, 0
        start = written = time.monotonic()
        with _progress(len(files)) as advance:
            for name, value in _in_order(self._try, files, threads):
                failed = isinstance(value, Unreadable)
                bad += failed
                if failed:
                    records[name] = Record(files[name], reason=str(value), about=value.about)
                    arrays.append(None)
                elif value is None:
                    records[name] = Record(files[name], stored=False)
                    arrays.append(None)
                else:
                    meta, array = self.decoder.pack(value)
                    records[name] = Record(files[name], meta)
                    arrays.append(array)
                    size += array.nbytes
                advance()
                late = time.monotonic() - written > _SHARD_SECONDS
                if size > _SHARD_BYTES or late:
                    self._keep(records, arrays)
                    records, arrays, size, written = {}, [], 0, time.monotonic()
            if records:
                self._keep(records, arrays)
        cannot = f"; {bad:,} cannot be read" if bad else ""
        say(f"decoded {what} in {time.monotonic() - start:.1f} s{cannot}")

    def _try(self, name: str) -> Any:
        try:
            return self.decoder.decode(name)
        except Unreadable as error:
            return error

    def _keep(self, records: Mapping[str, Record], arrays: Sequence[np.ndarray | None]) -> None:
        shard = write_shard(self.path, records, arrays)
        self.found |= {name: (shard, record) for name, record in shard.records.items()}


def _in_order(
    work: Callable[[str], Any], names: Mapping[str, Any], threads: int
) -> Iterator[tuple[str, Any]]:
    """`(name, work(name))`, a few of them at once and no more in memory than that."""
    left, waiting = iter(names), collections.deque()
    pool = ThreadPoolExecutor(threads)
    try:
        for name in itertools.islice(left, 2 * threads):
            waiting.append((name, pool.submit(work, name)))
        while waiting:
            name, done = waiting.popleft()
            value = done.result()
            for following in itertools.islice(left, 1):
                waiting.append((following, pool.submit(work, following)))
            yield name, value
    finally:
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Waits until no other process decodes into the folder. A kill ends the lock."""
    try:
        import fcntl
    except ImportError:  # not everywhere; two that decode the same files both write whole shards
        yield
        return
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another process that decodes into {folder}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _progress(total: int) -> Iterator[Callable[[], None]]:
    """Gives a function to be called for each file."""
    done = itertools.count(1)
    with progress("decoding", "decoded", "files", total, _SHARD_SECONDS) as report:
        yield lambda: report(next(done))
