"""Folders of files as sources: `manifest` describes them row by row, `video_folder` by their place.

Rows, not folders, are the common form: `video_folder` makes rows, and everything behind them
(`rows`, `source`) is the same.
"""

from mtmm_jax.data.sources.manifest.bad import BadRows, Problem
from mtmm_jax.data.sources.manifest.folder import video_folder
from mtmm_jax.data.sources.manifest.source import manifest
from mtmm_jax.readers.limits import Limits

__all__ = ["BadRows", "Limits", "Problem", "manifest", "video_folder"]
