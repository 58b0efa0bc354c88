"""Limits on the cost of a file, and the one error for a file that cannot be used."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

from mtmm_jax.ranges import Bytes, Count, Positive

_T = TypeVar("_T")


class Unreadable(ValueError):
    """The error of a file or value that cannot be used: one line, without naming it.

    `about` sorts the reasons: "bad value", "missing", "outside", "over a limit", "undecodable".
    """

    def __init__(self, reason: str, about: str = "bad value") -> None:
        super().__init__(reason)
        self.about = about


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits on size, as far as headers show before anything is decoded.

    Attributes:
        file_bytes: of any media file.
        pixels: of a picture or of a clip's frame.
        clip_pixels: of all frames of an animation, which are decoded one after the other.
        frames: of a clip.
        seconds: of a recording.
        text_bytes: of a text, in a file or in the manifest.
        row_bytes: of a line of the manifest.
    """

    file_bytes: Bytes = 2**25
    pixels: Count = 32_000_000
    clip_pixels: Count = 250_000_000
    frames: Count = 2048
    seconds: Positive = 600.0
    text_bytes: Bytes = 2**18
    row_bytes: Bytes = 2**20

    def check(self, name: str, found: float, unit: str) -> None:
        """Raises `Unreadable` where `found` is over the limit of that name."""
        allowed = getattr(self, name)
        if found > allowed:
            reason = f"has {found:,} {unit}, over the limit of {allowed:,}"
            raise Unreadable(reason, "over a limit")


LIMITS = Limits()


def guard(decode: Callable[..., _T], *args: Any) -> _T:
    """Calls a decoder; whatever a hostile file makes it raise becomes `Unreadable`."""
    try:
        return decode(*args)
    except Unreadable as error:
        if error.about == "bad value":
            error.about = "undecodable"
        raise
    except Exception as error:  # decoders raise anything: struct.error, IndexError, MemoryError
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise Unreadable(reason, "undecodable") from error
