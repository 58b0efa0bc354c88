"""Data: from files to batches. `SOURCES` names the data sets; `readers` read single files.

A source has a `spec`, endless `train` batches, one ordered pass of `batches` over a split, and the
`assets` that prediction needs.
"""

from mtmm_jax.data.emoji import emoji
from mtmm_jax.data.source import Source

SOURCES = {"emoji": emoji}

__all__ = ["SOURCES", "Source"]
