"""Series `[B, T, channels]` of any length -> tokens: GRU, Transformer, and 1-D convolutions that
also read waveforms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mtmm_jax.batch import Modality, Tokens
from mtmm_jax.encoders.encoder import Encoder, mask_of
from mtmm_jax.encoders.sequence import GRUEncoder, TransformerEncoder
from mtmm_jax.layers import NORMS, sinusoid
from mtmm_jax.ranges import LayersOrZero, Positive, Size
from mtmm_jax.registry import choose

# preset -> channels of the convolutions
CONVS = {"mini": (32, 64), "tiny": (32, 64, 64), "small": (64, 128, 256, 256)}


def _accepts(modality: Modality) -> bool:
    return modality.is_a("series") and len(modality.shape) == 2


def _seconds(steps: int, batch: int, rate: float | None) -> jax.Array:
    """`[B, steps, 1]`, when each step is; counted in steps where the rate is not known."""
    times = jnp.arange(steps, dtype=jnp.float32)[:, None] / (rate or 1.0)
    return jnp.broadcast_to(times, (batch, steps, 1))


class GRUSeries(GRUEncoder):
    """A linear map of the channels -> GRU.

    Paper: Cho et al. 2014, arXiv:1406.1078. Costs 3 D^2 a step, one after the other. Use it: for
    series of up to some hundred steps. Not: for longer ones (`conv1d`).

    Attributes:
        modality: the name that its tokens carry.
        rate: steps per second, if known.
    """

    modality: str = "series"
    rate: Positive | None = None

    accepts = staticmethod(_accepts)

    def setup(self) -> None:
        super().setup()
        self.read = nn.Dense(self.size, dtype=self.precision)

    def stem(self, entry: Mapping[str, Any], **mode: Any) -> Tokens:
        del mode
        x = entry["x"]
        at = _seconds(x.shape[1], x.shape[0], self.rate)
        values = self.read(x).astype(jnp.float32)
        return Tokens.of(values, mask_of(entry), self.modality, positions=at)


class TransformerSeries(TransformerEncoder):
    """A linear map of the channels + sinusoidal positions -> Transformer.

    Paper: Zerveas et al. 2021, arXiv:2010.02803. Costs the square of the length, in each layer. Use
    it: where distant times have to meet. Not: with few rows or thousands of steps (`perceiver`).

    Attributes:
        modality: the name that its tokens carry.
        rate: steps per second, if known.
    """

    modality: str = "series"
    rate: Positive | None = None

    accepts = staticmethod(_accepts)

    def setup(self) -> None:
        super().setup()
        self.read = nn.Dense(self.size[1], dtype=self.precision)

    def stem(self, entry: Mapping[str, Any], **mode: Any) -> Tokens:
        del mode
        x = self.read(entry["x"]).astype(jnp.float32)
        order = _seconds(x.shape[1], x.shape[0], None)
        at = _seconds(x.shape[1], x.shape[0], self.rate)
        values = x + sinusoid(order, x.shape[-1])
        return Tokens.of(values, mask_of(entry), self.modality, positions=at)


class Conv1D(Encoder):
    """Convolutions over time: a wide, strided one first, then ones of stride 2.

    Paper: Dai et al. 2017, arXiv:1610.00087. Costs `kernel` c^2 a sample and layer, halved by each
    stride. Use it: for raw waves and for series in which shapes repeat at any time. Not: where
    distant times have to meet.

    Attributes:
        modality: the name that its tokens carry.
        rate: samples or steps per second, if known.
        preset: size: mini (32 and 64 channels), tiny (32, 64 and 64) or small (64 to 256).
        kernel, stride: of the first convolution; by default 3 and 1 for series, and about 16 ms and
            8 ms for sound.
        norm: "batch" or "group".
        cut: how many convolutions belong to the first half of the body.
        projected: whether a linear map to `width` ends it; else the width is the last
            convolution's.
    """

    modality: str = "series"
    rate: Positive | None = None
    preset: str = "tiny"
    kernel: Size | None = None
    stride: Size | None = None
    norm: str = "batch"
    cut: LayersOrZero = 1
    projected: bool = True

    @staticmethod
    def accepts(modality: Modality) -> bool:
        return _accepts(modality) or (modality.is_a("audio") and len(modality.shape) == 1)

    @nn.nowrap
    def _channels(self) -> tuple[int, ...]:
        return CONVS[choose(self.preset, CONVS, "conv1d.preset", "preset")]

    def setup(self) -> None:
        choose(self.norm, NORMS, "conv1d.norm", "norm")
        channels = self._channels()
        self.norms = [NORMS[self.norm](name=f"norm{i + 1}") for i in range(len(channels))]
        self.convs = [
            nn.Conv(
                c, (3,), (2,), padding=1, use_bias=False, dtype=self.precision, name=f"conv{i + 2}"
            )
            for i, c in enumerate(channels[1:])
        ]
        self.project = self.projection()

    @property
    def features(self) -> int:
        return self._channels()[-1]

    @nn.compact
    def stem(self, entry: Mapping[str, Any], **mode: Any) -> Tokens:
        x, mask = entry["x"], mask_of(entry)
        sound = x.ndim == 2
        rate = self.rate or 16_000.0
        stride = self.stride or (max(round(0.008 * rate), 1) if sound else 1)
        kernel = self.kernel or (2 * stride if sound else 3)
        x = (x[..., None] if sound else x) * mask[..., None].astype(x.dtype)
        pad = (kernel - stride + 1) // 2
        conv = nn.Conv(
            self._channels()[0],
            (kernel,),
            (stride,),
            padding=((pad, kernel - stride - pad),),
            use_bias=False,
            dtype=self.precision,
            name="conv1",
        )
        count = x.shape[1] // stride
        x, mask = conv(x)[:, :count], mask[:, ::stride][:, :count]
        x = nn.relu(self.norms[0](x, mask, **mode))
        return self._tokens(x, mask, stride / self.rate if self.rate else float(stride))

    def first(self, tokens: Tokens, **mode: Any) -> Tokens:
        return self._run(slice(0, self.cut), tokens, mode)

    def second(self, tokens: Tokens, **mode: Any) -> Tokens:
        tokens = self._run(slice(self.cut, None), tokens, mode)
        return tokens.replace_values(self.project(tokens.values))

    @nn.nowrap
    def _run(self, part: slice, tokens: Tokens, mode: dict[str, Any]) -> Tokens:
        x, mask, step = tokens.values, tokens.mask, tokens.layout[0].stride[0]
        for conv, norm in zip(self.convs[part], self.norms[1:][part], strict=True):
            # As in LogMelCNN: masked steps are zero before each convolution, and output i sits on
            # input 2i, so padding more changes nothing.
            x = conv(x * mask[..., None].astype(x.dtype))
            mask, step = mask[:, ::2], 2 * step
            x = nn.relu(norm(x, mask, **mode))
        return self._tokens(x, mask, step)

    @nn.nowrap
    def _tokens(self, x: jax.Array, mask: jax.Array, step: float) -> Tokens:
        at = _seconds(x.shape[1], x.shape[0], 1 / step)
        x = x.astype(jnp.float32)
        return Tokens.of(x, mask, self.modality, stride=(step,), positions=at)
