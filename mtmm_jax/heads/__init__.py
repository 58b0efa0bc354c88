"""`Tokens` -> prediction.

A head is a Linen module called as `head(tokens, train=..., axis_name=...)`, where `tokens` maps
each thing that its task reads to `Tokens`.
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
