"""Ogg Opus with reproducible bytes.

libsndfile draws a random serial number for every stream. It has no meaning in a file with a single
stream, so it is set to zero here, and the pages' checksums with it.
"""

from __future__ import annotations

import io

import numpy as np
import soundfile

_SERIAL, _CHECKSUM, _SEGMENTS = slice(14, 18), slice(22, 26), 26


def _table() -> list[int]:
    """CRC-32 with polynomial 0x04c11db7, most significant bit first (RFC 3533)."""
    table = []
    for byte in range(256):
        value = byte << 24
        for _ in range(8):
            value = (value << 1) ^ (0x04C11DB7 if value & 0x80000000 else 0)
        table.append(value & 0xFFFFFFFF)
    return table


def _checksum(page: bytes, table: list[int]) -> int:
    value = 0
    for byte in page:
        value = ((value << 8) & 0xFFFFFFFF) ^ table[(value >> 24) ^ byte]
    return value


def without_serial(stream: bytes) -> bytes:
    """The same Ogg stream with serial number 0."""
    table, pages, start = _table(), [], 0
    while start < len(stream):
        if stream[start : start + 4] != b"OggS":
            raise ValueError(f"no Ogg page at byte {start}")
        count = stream[start + _SEGMENTS]
        body = start + _SEGMENTS + 1 + count
        stop = body + sum(stream[start + _SEGMENTS + 1 : body])
        page = bytearray(stream[start:stop])
        page[_SERIAL] = page[_CHECKSUM] = bytes(4)
        page[_CHECKSUM] = _checksum(page, table).to_bytes(4, "little")
        pages.append(bytes(page))
        start = stop
    return b"".join(pages)


def encode(wave: np.ndarray, rate: int, compression: float) -> bytes:
    """int16 -> Ogg Opus; `compression` is libsndfile's: 0 is 256 kbit/s, 1 is 6 kbit/s."""
    out = io.BytesIO()
    with soundfile.SoundFile(
        out, "w", rate, 1, format="OGG", subtype="OPUS", compression_level=compression
    ) as file:
        for start in range(0, len(wave), rate):
            file.write(wave[start : start + rate])
    return without_serial(out.getvalue())
