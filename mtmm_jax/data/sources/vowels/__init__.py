"""Japanese vowels: speaker identification from a series of twelve cepstral coefficients of /ae/."""

from mtmm_jax.data.sources.vowels.source import vowels

__all__ = ["vowels"]
