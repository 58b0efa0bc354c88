"""Shared layers: attention, the Transformer block, masked norms, dropout, GRU, positions.

Every layer takes `train` and `axis_name` where it needs them, so that n devices compute what one
does: statistics are summed over devices, and dropout draws by row of the whole batch.
"""

from mtmm_jax.layers.adapter import Adapter as Adapter
from mtmm_jax.layers.attention import Attention as Attention
from mtmm_jax.layers.attention import TransformerBlock as TransformerBlock
from mtmm_jax.layers.attention import masked_softmax as masked_softmax
from mtmm_jax.layers.auxiliary import auxiliary as auxiliary
from mtmm_jax.layers.convolution import convolve as convolve
from mtmm_jax.layers.gru import GRU as GRU
from mtmm_jax.layers.latents import CrossBlock as CrossBlock
from mtmm_jax.layers.latents import Latents as Latents
from mtmm_jax.layers.norms import NORMS as NORMS
from mtmm_jax.layers.norms import BatchNorm as BatchNorm
from mtmm_jax.layers.norms import GroupNorm as GroupNorm
from mtmm_jax.layers.patches import cells as cells
from mtmm_jax.layers.patches import fill_up as fill_up
from mtmm_jax.layers.patches import patches as patches
from mtmm_jax.layers.positions import fourier as fourier
from mtmm_jax.layers.positions import sinusoid as sinusoid
from mtmm_jax.layers.positionwise import Dropout as Dropout
from mtmm_jax.layers.positionwise import FeedForward as FeedForward
from mtmm_jax.layers.positionwise import LayerNorm as LayerNorm
from mtmm_jax.layers.positionwise import batch_bernoulli as batch_bernoulli
from mtmm_jax.layers.positionwise import batch_normal as batch_normal
from mtmm_jax.layers.positionwise import batch_rows as batch_rows
from mtmm_jax.layers.positionwise import gelu as gelu
