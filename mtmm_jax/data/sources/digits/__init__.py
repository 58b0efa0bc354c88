"""Handwritten digits in six views: the same strokes, measured in six ways."""

from mtmm_jax.data.sources.digits.source import digits

__all__ = ["digits"]
