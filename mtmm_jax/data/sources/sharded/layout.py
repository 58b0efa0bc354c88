"""The layout of a row in a shard: a record of fixed size, and a blob for values of any size.

rows   uint8 [R, width]   crc32 of the row, its split, where its blob is, labels, ids, numbers
blobs  uint8 [bytes]      a row's words, then its decoded files: JSON of what each is, its array
"""

from __future__ import annotations

import dataclasses
import json
import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mtmm_jax.data.sources.manifest.shards import Damaged

Field = tuple[str, str, tuple[int, ...]]
"""Name, dtype and shape of a row's part of an array."""
Decoded = tuple[Mapping[str, Any], np.ndarray]
"""What JSON holds of a decoded file, and its array."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """Of every row of a pack.

    Attributes:
        fields: that have the same size in each row.
        decoded: modalities whose decoded files are in the blob.
    """

    fields: tuple[Field, ...]
    decoded: tuple[str, ...]

    @property
    def dtype(self) -> np.dtype:
        """Of a record, without gaps."""
        sizes = [(f"size/{name}", "<i4", (2,)) for name in self.decoded]
        head = [("crc", "<u4"), ("part", "i1"), ("at", "<i8"), ("words", "<i4")]
        return np.dtype([*head, *sizes, *self.fields])

    def seal(
        self, records: np.ndarray, words: Sequence[bytes], files: Sequence[Mapping[str, Decoded]]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rows and blobs of a shard; fills in places and checksums.

        Args:
            records: `[R]` of `dtype`, with the fields.
            words: of each row.
            files: of each row.
        """
        blobs = bytearray()
        for i, (text, decoded) in enumerate(zip(words, files, strict=True)):
            start = len(blobs)
            records["at"][i], records["words"][i] = start, len(text)
            blobs += text
            for name, (meta, array) in decoded.items():
                about = {"meta": meta, "dtype": array.dtype.name, "shape": array.shape}
                head = json.dumps(about).encode()
                records[f"size/{name}"][i] = len(head), array.nbytes
                blobs += head
                blobs += np.ascontiguousarray(array).tobytes()
            record = records[i : i + 1].tobytes()
            records["crc"][i] = zlib.crc32(memoryview(blobs)[start:], zlib.crc32(record[4:]))
        rows = np.frombuffer(records.tobytes(), np.uint8).reshape(len(records), -1)
        return rows, np.frombuffer(bytes(blobs), np.uint8)

    def blob_size(self, record: np.void) -> int:
        """Of a row's blob."""
        return int(record["words"]) + sum(int(record[f"size/{n}"].sum()) for n in self.decoded)

    def check(self, record: bytes, blob: bytes) -> None:
        """Raises `Damaged` where a row is not what was written."""
        written = int.from_bytes(record[:4], "little")
        if zlib.crc32(blob, zlib.crc32(record[4:])) != written:
            raise Damaged("a row is not what was written")

    def files(self, record: np.void, blob: bytes) -> dict[str, Decoded]:
        """The decoded files of a row, of those modalities that it has."""
        at, found = int(record["words"]), {}
        for name in self.decoded:
            head, size = record[f"size/{name}"].tolist()
            if head:
                about = json.loads(blob[at : at + head])
                found[name] = about["meta"], _array(blob, at + head, size, about)
            at += head + size
        return found


def _array(blob: bytes, at: int, size: int, about: Mapping[str, Any]) -> np.ndarray:
    dtype = np.dtype(about["dtype"])
    if dtype.hasobject or math.prod(about["shape"]) * dtype.itemsize != size:
        raise Damaged("a row holds another array than it says")
    return np.frombuffer(blob, dtype, size // dtype.itemsize, at).reshape(about["shape"])
