"""`Tokens` -> prediction.

A head is a Linen module called as `head(tokens, train=..., axis_name=...)`, where `tokens` maps
each thing that its task reads to `Tokens`.

    >>> import jax, jax.numpy as jnp
    >>> from mtmm_jax.batch import Tokens
    >>> from mtmm_jax.heads import HEADS
    >>> tokens = {"text": Tokens.of(jnp.ones((2, 3, 8)), jnp.ones((2, 3), bool), "text")}
    >>> head = HEADS["vector"](size=5)
    >>> head.apply(head.init(jax.random.key(0), tokens), tokens).shape
    (2, 5)
"""

from mtmm_jax.heads.ctc import CTC as CTC
from mtmm_jax.heads.decoder import Decoder as Decoder
from mtmm_jax.heads.dense import Pixels as Pixels
from mtmm_jax.heads.detection import Centres as Centres
from mtmm_jax.heads.detection import Queries as Queries
from mtmm_jax.heads.embedding import Embedding as Embedding
from mtmm_jax.heads.mel import Mel as Mel
from mtmm_jax.heads.ordinal import Cumulative as Cumulative
from mtmm_jax.heads.path import Path as Path
from mtmm_jax.heads.vector import Vector as Vector

HEADS = {
    "vector": Vector,
    "embedding": Embedding,
    "centres": Centres,
    "queries": Queries,
    "pixels": Pixels,
    "cumulative": Cumulative,
    "path": Path,
    "ctc": CTC,
    "decoder": Decoder,
    "mel": Mel,
}
