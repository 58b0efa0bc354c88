"""Raw input -> `Tokens`. One file per modality; each encoder has a stem and a body.

An encoder is an `Encoder`, a Linen module with

    stem(entry)     one modality's inputs -> Tokens
    first(tokens)   the body up to its cut
    second(tokens)  the rest, ending in tokens of width `width`
    __call__        second(first(stem(entry)))

all taking `train` and `axis_name`. Encoders do not pool; heads do.

    >>> import jax, jax.numpy as jnp
    >>> from mtmm_jax.encoders import ENCODERS
    >>> entry = {"x": jnp.ones((2, 5)), "present": jnp.array([True, False])}
    >>> encoder = ENCODERS["table_mlp"](width=8)
    >>> tokens = encoder.apply(encoder.init(jax.random.key(0), entry), entry)
    >>> tokens.values.shape, tokens.present.tolist()
    ((2, 1, 8), [True, False])
"""

from mtmm_jax.encoders.audio import LogMelCNN as LogMelCNN
from mtmm_jax.encoders.audio import MLPAudio as MLPAudio
from mtmm_jax.encoders.audio import TransformerAudio as TransformerAudio
from mtmm_jax.encoders.backbones.pretrained import pretrained as pretrained
from mtmm_jax.encoders.encoder import Encoder as Encoder
from mtmm_jax.encoders.fixed import AudioSummary as AudioSummary
from mtmm_jax.encoders.fixed import FixedEncoder as FixedEncoder
from mtmm_jax.encoders.fixed import ImageGradients as ImageGradients
from mtmm_jax.encoders.fixed import SeriesSummary as SeriesSummary
from mtmm_jax.encoders.fixed import TableColumns as TableColumns
from mtmm_jax.encoders.fixed import TextNgrams as TextNgrams
from mtmm_jax.encoders.fixed import VideoGradients as VideoGradients
from mtmm_jax.encoders.image import CNN as CNN
from mtmm_jax.encoders.image import MLPImage as MLPImage
from mtmm_jax.encoders.image import ResNet as ResNet
from mtmm_jax.encoders.perceiver import Perceiver as Perceiver
from mtmm_jax.encoders.raw import Raw as Raw
from mtmm_jax.encoders.series import Conv1D as Conv1D
from mtmm_jax.encoders.series import GRUSeries as GRUSeries
from mtmm_jax.encoders.series import TransformerSeries as TransformerSeries
from mtmm_jax.encoders.speech import LogMelGRU as LogMelGRU
from mtmm_jax.encoders.table import MLPTable as MLPTable
from mtmm_jax.encoders.table import TransformerTable as TransformerTable
from mtmm_jax.encoders.text import BagText as BagText
from mtmm_jax.encoders.text import Bert as Bert
from mtmm_jax.encoders.text import GRUText as GRUText
from mtmm_jax.encoders.text import TransformerText as TransformerText
from mtmm_jax.encoders.video import VideoFrames as VideoFrames
from mtmm_jax.encoders.vit import TubeletVideo as TubeletVideo
from mtmm_jax.encoders.vit import ViT as ViT

ENCODERS = {
    "cnn": CNN,
    "resnet": ResNet,
    "vit": ViT,
    "image_mlp": MLPImage,
    "text_transformer": TransformerText,
    "bert": Bert,
    "pretrained": pretrained,
    "text_gru": GRUText,
    "text_bag": BagText,
    "log_mel_cnn": LogMelCNN,
    "log_mel_gru": LogMelGRU,
    "audio_transformer": TransformerAudio,
    "audio_mlp": MLPAudio,
    "conv1d": Conv1D,
    "video_frames": VideoFrames,
    "video_tubelets": TubeletVideo,
    "series_gru": GRUSeries,
    "series_transformer": TransformerSeries,
    "table_mlp": MLPTable,
    "table_transformer": TransformerTable,
    "perceiver": Perceiver,
    "image_gradients": ImageGradients,
    "video_gradients": VideoGradients,
    "text_ngrams": TextNgrams,
    "audio_summary": AudioSummary,
    "series_summary": SeriesSummary,
    "table_columns": TableColumns,
}
