"""`Tokens` -> prediction.

A head is a Linen module called as `head(tokens, train=..., axis_name=...)`, where `tokens` maps
each thing that its task reads to `Tokens`.
"""

from mtmm_jax.heads.embedding import Embedding as Embedding
from mtmm_jax.heads.vector import Vector as Vector

HEADS = {"vector": Vector, "embedding": Embedding}
