"""Dict of `Tokens`, one a modality -> `Tokens`. One file per family.

A fusion is a Linen module called as `fusion(tokens, train=..., axis_name=...)`; it says its limits
as class attributes: `modalities = (fewest, most or None)` and `keeps_layout`, whether a head can
still find a modality's grid in what it gives. An absent modality has no unmasked token and
contributes nothing.
"""

from mtmm_jax.fusion.bottleneck import Bottleneck as Bottleneck
from mtmm_jax.fusion.pooled import Concat as Concat
from mtmm_jax.fusion.pooled import Weighted as Weighted

FUSIONS = {"concat": Concat, "weighted": Weighted, "bottleneck": Bottleneck}
