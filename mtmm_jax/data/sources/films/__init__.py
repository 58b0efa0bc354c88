"""Films: what they are called, who made them, what critics thought; labels really missing."""

from mtmm_jax.data.sources.films.source import films

__all__ = ["films"]
