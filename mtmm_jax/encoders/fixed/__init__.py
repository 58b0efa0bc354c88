"""Encoders without learned features: formulas, scaled by statistics of the train split.

Each is a row of `ENCODERS`, which ends in one learned linear map; and the features of a linear
model (`model.linear`), which reads `FixedEncoder.vectors` as they are. For a few thousand examples
they are hard to beat.
"""

from mtmm_jax.encoders.fixed.columns import TableColumns as TableColumns
from mtmm_jax.encoders.fixed.fixed import FixedEncoder as FixedEncoder
from mtmm_jax.encoders.fixed.fixed import FrozenVectors as FrozenVectors
from mtmm_jax.encoders.fixed.gradients import ImageGradients as ImageGradients
from mtmm_jax.encoders.fixed.gradients import VideoGradients as VideoGradients
from mtmm_jax.encoders.fixed.ngrams import TextNgrams as TextNgrams
from mtmm_jax.encoders.fixed.summaries import AudioSummary as AudioSummary
from mtmm_jax.encoders.fixed.summaries import SeriesSummary as SeriesSummary
