"""Images -> tokens: convolutional networks whose last feature map is the grid of tokens, and an
MLP on the pixels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mtmm_jax.batch import Modality, Tokens
from mtmm_jax.encoders.encoder import Encoder, MLPEncoder
from mtmm_jax.layers import NORMS, cells, convolve
from mtmm_jax.ranges import LayersOrZero, Size
from mtmm_jax.registry import ConfigError, choose

# preset -> blocks a stage, channels a stage
RESNETS = {
    "tiny": ((1, 1, 1), (32, 64, 128)),
    "small": ((1, 1, 1, 1), (32, 64, 128, 256)),
    "18": ((2, 2, 2, 2), (64, 128, 256, 512)),
    "34": ((3, 4, 6, 3), (64, 128, 256, 512)),
    "50": ((3, 4, 6, 3), (64, 128, 256, 512)),
}
BOTTLENECKS = ("50",)
# stem -> size and stride of its convolution
STEMS = {"small": (3, 1), "half": (4, 2), "large": (7, 2)}
# preset -> channels of the convolutions
CNNS = {"tiny": (16, 32), "small": (64, 128), "base": (64, 128, 256, 512)}
# what the pixels of -1..1 become -> mean and standard deviation that are taken out, in 0..1
PIXELS = {
    "plain": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
_INIT = nn.initializers.variance_scaling(2.0, "fan_out", "truncated_normal")


def accepts_images(modality: Modality) -> bool:
    return modality.is_a("image") and len(modality.shape) == 3


def _conv(features: int, size: int, stride: int, dtype: Any, name: str) -> nn.Conv:
    """A 3 x 3 or 7 x 7 convolution with symmetric padding, as in torchvision."""
    return nn.Conv(
        features,
        (size, size),
        (stride, stride),
        padding=(size - 1) // 2,
        use_bias=False,
        kernel_init=_INIT,
        dtype=dtype,
        conv_general_dilated=convolve,
        name=name,
    )


class _Block(nn.Module):
    """Two 3 x 3 convolutions and a shortcut, or, as a bottleneck, 1 x 1, 3 x 3 and a 1 x 1 of four
    times the channels (He et al. 2016)."""

    channels: int
    stride: Size
    norm: str
    bottleneck: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, present: jax.Array, **mode: Any) -> jax.Array:
        norm, c = NORMS[self.norm], self.channels
        # features, size, stride; torchvision strides the 3 x 3 of a bottleneck
        convs = [(c, 3, self.stride), (c, 3, 1)]
        if self.bottleneck:
            convs = [(c, 1, 1), (c, 3, self.stride), (4 * c, 1, 1)]
        h = x
        for i, conv in enumerate(convs, start=1):
            h = _conv(*conv, self.dtype, f"conv{i}")(h)
            h = norm(name=f"norm{i}")(h, present, **mode)
            h = nn.relu(h) if i < len(convs) else h
        if x.shape != h.shape:
            x = _conv(h.shape[-1], 1, self.stride, self.dtype, "shortcut")(x)
            x = norm(name="shortcut_norm")(x, present, **mode)
        return nn.relu(x + h)


class ResNet(Encoder):
    """ResNet: a feature map as a grid of tokens.

    `transfer.import_resnet` reads torchvision's weights into `stem_kind="large"`.

    Paper: He et al. 2016, arXiv:1512.03385. Costs 1.8 (ResNet-18) to 4.1 (ResNet-50) billion
    multiplications a picture of 224 x 224. Use it: as the default for pictures, from scratch or
    from torchvision's weights. Not: with batches of a few rows and BatchNorm; take `norm` group.

    Attributes:
        modality: the name that its tokens carry.
        preset: size: tiny, small, 18, 34 or 50.
        stem_kind: "small" (3 x 3, for images of about 32 pixels), "half" (4 x 4 with stride 2: a
            quarter of the cost) or "large" (7 x 7 with stride 2 and a max-pool, as in torchvision).
        norm: "batch" (synchronised over devices, absent images left out) or "group".
        cut: how many stages belong to the first half of the body.
        pixels: "plain" (-1..1), or "imagenet": the mean and spread that torchvision's weights know.
        projected: whether a linear map to `width` ends it; else the width is the last stage's.
    """

    modality: str = "image"
    preset: str = "tiny"
    stem_kind: str = "small"
    norm: str = "batch"
    cut: LayersOrZero = 2
    pixels: str = "plain"
    projected: bool = True

    accepts = staticmethod(accepts_images)

    def setup(self) -> None:
        choose(self.preset, RESNETS, "resnet.preset", "preset")
        choose(self.stem_kind, STEMS, "resnet.stem_kind", "stem")
        choose(self.norm, NORMS, "resnet.norm", "norm")
        choose(self.pixels, PIXELS, "resnet.pixels", "normalisation")
        depths, channels = RESNETS[self.preset]
        bottleneck = self.preset in BOTTLENECKS
        size, stride = STEMS[self.stem_kind]
        self.conv1 = _conv(channels[0], size, stride, self.precision, "conv1")
        self.norm1 = NORMS[self.norm](name="norm1")
        self.stages = [
            [
                _Block(
                    features,
                    2 if stage > 0 and index == 0 else 1,
                    self.norm,
                    bottleneck,
                    self.precision,
                    name=f"stage{stage + 1}_block{index + 1}",
                )
                for index in range(depth)
            ]
            for stage, (depth, features) in enumerate(zip(depths, channels, strict=True))
        ]
        self.project = self.projection()

    @property
    def features(self) -> int:
        _, channels = RESNETS[choose(self.preset, RESNETS, "resnet.preset", "preset")]
        return channels[-1] * (4 if self.preset in BOTTLENECKS else 1)

    def stem(self, entry: Mapping[str, Any], **mode: Any) -> Tokens:
        x, present = rescaled(entry["x"], self.pixels), entry["present"]
        h = nn.relu(self.norm1(self.conv1(x), present, **mode))
        if self.stem_kind == "large":
            h = nn.max_pool(h, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
        return image_tokens(h, present, x.shape[1:3], self.modality)

    def first(self, tokens: Tokens, **mode: Any) -> Tokens:
        return self._run(self.stages[: self.cut], tokens, mode)

    def second(self, tokens: Tokens, **mode: Any) -> Tokens:
        tokens = self._run(self.stages[self.cut :], tokens, mode)
        return tokens.replace_values(self.project(tokens.values))

    def _run(self, stages: list[Any], tokens: Tokens, mode: dict[str, Any]) -> Tokens:
        x, present = tokens.grid().astype(self.precision), tokens.present
        for stage in stages:
            for block in stage:
                x = block(x, present, **mode)
        return image_tokens(x, present, pixels_of(tokens), self.modality)


class CNN(Encoder):
    """3 x 3 convolutions, each with a ReLU and a 2 x 2 max-pool: the textbook's network.

    Paper: LeCun et al. 1998. Costs 9 c^2 multiplications a pixel and layer, a quarter of it after
    each pool. Use it: for small pictures and few rows. Not: where `resnet` with pretrained weights
    is at hand.

    Attributes:
        modality: the name that its tokens carry.
        preset: size: tiny (16 and 32 channels), small (64 and 128) or base (64 to 512).
        norm: "none", "batch" or "group", between convolution and ReLU.
        cut: how many convolutions belong to the first half of the body, of those after the first,
            which is the stem.
        pixels: "plain" (-1..1), or "imagenet", as in `ResNet`.
        projected: whether a linear map to `width` ends it; else the width is the last
            convolution's.
    """

    modality: str = "image"
    preset: str = "tiny"
    norm: str = "none"
    cut: LayersOrZero = 1
    pixels: str = "plain"
    projected: bool = True

    accepts = staticmethod(accepts_images)

    @property
    def features(self) -> int:
        return CNNS[choose(self.preset, CNNS, "cnn.preset", "preset")][-1]

    def setup(self) -> None:
        channels = CNNS[choose(self.preset, CNNS, "cnn.preset", "preset")]
        choose(self.norm, ("none", *NORMS), "cnn.norm", "norm")
        choose(self.pixels, PIXELS, "cnn.pixels", "normalisation")
        self.convs = [
            nn.Conv(
                c,
                (3, 3),
                use_bias=self.norm == "none",
                kernel_init=_INIT,
                dtype=self.precision,
                name=f"conv{i + 1}",
            )
            for i, c in enumerate(channels)
        ]
        kinds = [] if self.norm == "none" else [NORMS[self.norm]] * len(channels)
        self.norms = [kind(name=f"norm{i + 1}") for i, kind in enumerate(kinds)]
        self.project = self.projection()

    def stem(self, entry: Mapping[str, Any], **mode: Any) -> Tokens:
        x, present = rescaled(entry["x"], self.pixels), entry["present"]
        least = 2 ** len(self.convs)
        if min(x.shape[1:3]) < least:
            raise ConfigError(f"cnn: a {self.preset} one needs {least} x {least} pixels or more")
        h = self._layer(0, x, present, mode)
        return image_tokens(h, present, x.shape[1:3], self.modality)

    def first(self, tokens: Tokens, **mode: Any) -> Tokens:
        return self._run(range(1, min(1 + self.cut, len(self.convs))), tokens, mode)

    def second(self, tokens: Tokens, **mode: Any) -> Tokens:
        tokens = self._run(range(1 + self.cut, len(self.convs)), tokens, mode)
        return tokens.replace_values(self.project(tokens.values))

    def _run(self, part: range, tokens: Tokens, mode: dict[str, Any]) -> Tokens:
        x, present = tokens.grid(), tokens.present
        for i in part:
            x = self._layer(i, x, present, mode)
        return image_tokens(x, present, pixels_of(tokens), self.modality)

    def _layer(self, i: int, x: jax.Array, present: jax.Array, mode: dict[str, Any]) -> jax.Array:
        x = self.convs[i](x)
        if self.norms:
            x = self.norms[i](x, present, **mode)
        return nn.relu(halve(x))  # the same as pooling after the ReLU, and a quarter of its work


class MLPImage(MLPEncoder):
    """All pixels as one vector -> two hidden layers, a residual one between -> one token.

    Costs pixels x hidden: one matrix. Use it: for tiny pictures in a fixed frame, and as a
    baseline. Not: where objects move about.

    Attributes:
        modality: the name that its token carries.
    """

    modality: str = "image"

    accepts = staticmethod(accepts_images)

    def vectors(self, entry: Mapping[str, Any]) -> Tokens:
        x = entry["x"]
        x = x.reshape(x.shape[0], 1, math.prod(x.shape[1:]))
        return Tokens.of(x, entry["present"][:, None], self.modality)


def rescaled(x: jax.Array, pixels: str) -> jax.Array:
    """Pixels of -1..1 with the mean and spread of an entry of `PIXELS` taken out."""
    if pixels == "plain":
        return x
    if x.shape[-1] != 3:
        raise ConfigError(
            f"encoder.pixels: {pixels!r} is of red, green and blue; these pictures have "
            f"{x.shape[-1]} channels: set it to 'plain'"
        )
    mean, spread = np.asarray(PIXELS[pixels], np.float32)
    return (0.5 * x + (0.5 - mean)) / spread


def halve(x: jax.Array) -> jax.Array:
    """2 x 2 max-pool of `[B, h, w, C]` with stride 2; an odd last row or column is left out."""
    height, width = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
    # By pairs: the gradient of `max` over an axis divides by the number of places that equal the
    # maximum, which is none where XLA computes the places anew with other rounding.
    x = jnp.maximum(x[:, 0:height:2, :width], x[:, 1:height:2, :width])
    return jnp.maximum(x[:, :, 0:width:2], x[:, :, 1:width:2])


def pixels_of(tokens: Tokens) -> tuple[int, ...]:
    """The height and width of the image that a grid of tokens covers."""
    span = tokens.layout[0]
    return tuple(round(n * s) for n, s in zip(span.grid, span.stride, strict=True))


def image_tokens(x: jax.Array, present: jax.Array, pixels: tuple[int, ...], name: str) -> Tokens:
    """A feature map `[B, h, w, C]` as float32 tokens at the centres of its cells, in pixels."""
    batch, *grid, channels = x.shape
    stride = tuple(size / n for size, n in zip(pixels, grid, strict=True))
    at = cells(grid, stride)
    return Tokens.of(
        x.reshape(batch, len(at), channels).astype(jnp.float32),
        jnp.broadcast_to(present[:, None], (batch, len(at))),
        name,
        grid=tuple(grid),
        stride=stride,
        positions=jnp.broadcast_to(at, (batch, *at.shape)),
    )
