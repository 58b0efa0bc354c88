"""Emoji: see it, name it, hear it. Real pictures and names, synthetic speech; see CARD.md."""

from mtmm_jax.data.emoji.source import emoji

__all__ = ["emoji"]
