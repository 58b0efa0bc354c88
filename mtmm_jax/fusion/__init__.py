"""Dict of `Tokens`, one a modality -> `Tokens`. One file per family.

A fusion is a Linen module called as `fusion(tokens, train=..., axis_name=...)`; it says its limits
as attributes: `modalities = (fewest, most or None)`, `keeps_layout`, whether a head can still find
a modality's grid in what it gives, and, where they hold, `mixes_rows` and `has_auxiliary`. An
absent modality has no unmasked token and contributes nothing, unless a filler of `MISSING` stands
in for it. `BOTTLENECKS` narrow what a modality brings; `ALIGNMENTS` bring modalities to common
positions first; `DECISIONS` fuse predictions.

    >>> import jax, jax.numpy as jnp
    >>> from mtmm_jax.batch import Tokens
    >>> from mtmm_jax.fusion import Concat
    >>> here = jnp.array([[True], [False]])  # the second row has neither
    >>> tokens = {name: Tokens.of(jnp.ones((2, 1, 4)), here, name) for name in ("image", "text")}
    >>> fusion = Concat(width=8)
    >>> fused = fusion.apply(fusion.init(jax.random.key(0), tokens), tokens)
    >>> fused.values.shape, fused.present.tolist()
    ((2, 1, 8), [True, False])
"""

from mtmm_jax.fusion.alignment import ALIGNMENTS as ALIGNMENTS
from mtmm_jax.fusion.bilinear import MFB as MFB
from mtmm_jax.fusion.bilinear import MLB as MLB
from mtmm_jax.fusion.bilinear import Block as Block
from mtmm_jax.fusion.bilinear import Tucker as Tucker
from mtmm_jax.fusion.bottleneck import Bottleneck as Bottleneck
from mtmm_jax.fusion.bottlenecks import BOTTLENECKS as BOTTLENECKS
from mtmm_jax.fusion.cross import CrossModal as CrossModal
from mtmm_jax.fusion.cross import NonLocalGate as NonLocalGate
from mtmm_jax.fusion.decision import DECISIONS as DECISIONS
from mtmm_jax.fusion.experts import MixtureOfExperts as MixtureOfExperts
from mtmm_jax.fusion.experts import ProductOfExperts as ProductOfExperts
from mtmm_jax.fusion.gated import FiLM as FiLM
from mtmm_jax.fusion.gated import Gated as Gated
from mtmm_jax.fusion.gated import GatedUnit as GatedUnit
from mtmm_jax.fusion.graph import GraphAttention as GraphAttention
from mtmm_jax.fusion.graph import GraphConvolution as GraphConvolution
from mtmm_jax.fusion.graph import PopulationGraph as PopulationGraph
from mtmm_jax.fusion.join import Join as Join
from mtmm_jax.fusion.missing import MISSING as MISSING
from mtmm_jax.fusion.perceiver import PerceiverFusion as PerceiverFusion
from mtmm_jax.fusion.perceiver import PerceiverIO as PerceiverIO
from mtmm_jax.fusion.pooled import Concat as Concat
from mtmm_jax.fusion.pooled import Mean as Mean
from mtmm_jax.fusion.pooled import Weighted as Weighted
from mtmm_jax.fusion.tensor import LowRankTensor as LowRankTensor
from mtmm_jax.fusion.tensor import Multiplicative as Multiplicative
from mtmm_jax.fusion.tensor import TensorFusion as TensorFusion
from mtmm_jax.fusion.transformer import EncoderDecoder as EncoderDecoder
from mtmm_jax.fusion.transformer import FusionTransformer as FusionTransformer
from mtmm_jax.fusion.transformer import FusionTransformerTokens as FusionTransformerTokens

FUSIONS = {
    "concat": Concat,
    "mean": Mean,
    "weighted": Weighted,
    "gated": Gated,
    "gated_unit": GatedUnit,
    "film": FiLM,
    "tensor": TensorFusion,
    "low_rank": LowRankTensor,
    "multiplicative": Multiplicative,
    "mlb": MLB,
    "mfb": MFB,
    "tucker": Tucker,
    "block": Block,
    "product_of_experts": ProductOfExperts,
    "mixture_of_experts": MixtureOfExperts,
    "join": Join,
    "transformer": FusionTransformer,
    "transformer_tokens": FusionTransformerTokens,
    "bottleneck": Bottleneck,
    "nl_gate": NonLocalGate,
    "crossmodal": CrossModal,
    "perceiver": PerceiverFusion,
    "perceiver_io": PerceiverIO,
    "encoder_decoder": EncoderDecoder,
    "gcn": GraphConvolution,
    "gat": GraphAttention,
    "population": PopulationGraph,
}
