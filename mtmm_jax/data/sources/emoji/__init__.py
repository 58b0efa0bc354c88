"""Emoji: see it, name it, hear it. Real pictures and names, synthetic speech; see CARD.md."""

from mtmm_jax.data.sources.emoji.source import emoji

__all__ = ["emoji"]
