"""Data: from files to batches. `SOURCES` names the data sets; `readers` read single files.

A source has a `spec`, endless `train` batches, one ordered pass of `batches` over a split, and the
`assets` that prediction needs. `build` makes one from a config, `mix` one out of several.
"""

from mtmm_jax.data.build import OPTIONS, SOURCES, build, in_step
from mtmm_jax.data.pipeline.mixing import MIXINGS
from mtmm_jax.data.pipeline.source import Source
from mtmm_jax.data.sources.mixture import mix, rename

__all__ = ["MIXINGS", "OPTIONS", "SOURCES", "Source", "build", "in_step", "mix", "rename"]
