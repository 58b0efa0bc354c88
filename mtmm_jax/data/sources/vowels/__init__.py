"""Japanese vowels: who says /ae/, heard as a series of twelve cepstral coefficients."""

from mtmm_jax.data.sources.vowels.source import vowels

__all__ = ["vowels"]
