"""Bytes of a text file -> the text."""

from __future__ import annotations

from mtmm_jax.readers.limits import LIMITS, Limits, Unreadable


def decode_text(data: bytes, limits: Limits = LIMITS) -> str:
    """UTF-8, with or without a byte order mark."""
    limits.check("text_bytes", len(data), "bytes")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Unreadable(f"is not UTF-8 at byte {error.start}") from error
