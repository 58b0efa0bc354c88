"""Bytes of a file -> arrays, within limits; and the cells of a table that name files.

The decoders take bytes, so that a manifest's files and a user's own go through the same code.
"""

from mtmm_jax.readers.limits import LIMITS, Limits, Unreadable

__all__ = ["LIMITS", "Limits", "Unreadable"]
