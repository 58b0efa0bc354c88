"""Handwritten digits in six views: the same strokes, measured in six ways."""

from mtmm_jax.data.digits.source import digits

__all__ = ["digits"]
