"""Images -> tokens: a residual network whose last feature map is the grid of tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mtmm_jax.batch import Modality, Tokens
from mtmm_jax.encoders.encoder import Encoder
from mtmm_jax.layers import NORMS
from mtmm_jax.registry import choose

# preset -> blocks a stage, channels a stage
RESNETS = {
    "tiny": ((1, 1, 1), (32, 64, 128)),
    "small": ((1, 1, 1, 1), (32, 64, 128, 256)),
    "18": ((2, 2, 2, 2), (64, 128, 256, 512)),
    "34": ((3, 4, 6, 3), (64, 128, 256, 512)),
}
# stem -> size and stride of its convolution
STEMS = {"small": (3, 1), "half": (4, 2), "large": (7, 2)}
_INIT = nn.initializers.variance_scaling(2.0, "fan_out", "truncated_normal")


def _conv(features: int, size: int, stride: int, name: str) -> nn.Conv:
    """A 3 x 3 or 7 x 7 convolution with symmetric padding, as in torchvision."""
    return nn.Conv(
        features,
        (size, size),
        (stride, stride),
        padding=(size - 1) // 2,
        use_bias=False,
        kernel_init=_INIT,
        name=name,
    )


class _Block(nn.Module):
    """Two 3 x 3 convolutions and a shortcut (He et al. 2016)."""

    channels: int
    stride: int
    norm: str

    @nn.compact
    def __call__(self, x: jax.Array, present: jax.Array, **mode: Any) -> jax.Array:
        norm = NORMS[self.norm]
        h = _conv(self.channels, 3, self.stride, "conv1")(x)
        h = nn.relu(norm(name="norm1")(h, present, **mode))
        h = _conv(self.channels, 3, 1, "conv2")(h)
        h = norm(name="norm2")(h, present, **mode)
        if x.shape != h.shape:
            x = _conv(self.channels, 1, self.stride, "shortcut")(x)
            x = norm(name="shortcut_norm")(x, present, **mode)
        return nn.relu(x + h)


class ResNet(Encoder):
    """ResNet (He et al. 2016): a feature map as a grid of tokens.

    Attributes:
        modality: the name that its tokens carry.
        preset: size: tiny, small, 18 or 34.
        stem_kind: "small" (3 x 3, for images of about 32 pixels), "half" (4 x 4 with stride 2: a
            quarter of the cost) or "large" (7 x 7 with stride 2 and a max-pool, as in torchvision).
        norm: "batch" (synchronised over devices, absent images left out) or "group".
        cut: how many stages belong to the first half of the body.
    """

    modality: str = "image"
    preset: str = "tiny"
    stem_kind: str = "small"
    norm: str = "batch"
    cut: int = 2

    def setup(self) -> None:
        choose(self.preset, RESNETS, "resnet.preset", "preset")
        choose(self.stem_kind, STEMS, "resnet.stem_kind", "stem")
        choose(self.norm, NORMS, "resnet.norm", "norm")
        depths, channels = RESNETS[self.preset]
        size, stride = STEMS[self.stem_kind]
        self.conv1 = _conv(channels[0], size, stride, "conv1")
        self.norm1 = NORMS[self.norm](name="norm1")
        self.stages = [
            [
                _Block(
                    features,
                    2 if stage > 0 and index == 0 else 1,
                    self.norm,
                    name=f"stage{stage + 1}_block{index + 1}",
                )
                for index in range(depth)
            ]
            for stage, (depth, features) in enumerate(zip(depths, channels, strict=True))
        ]
        self.project = nn.Dense(self.width, name="project")

    @staticmethod
    def accepts(modality: Modality) -> bool:
        return modality.kind == "image" and len(modality.shape) == 3

    def stem(self, entry: Mapping[str, Any], **mode: Any) -> Tokens:
        x, present = entry["x"], entry["present"]
        h = nn.relu(self.norm1(self.conv1(x), present, **mode))
        if self.stem_kind == "large":
            h = nn.max_pool(h, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
        return _tokens(h, present, x.shape[1:3], self.modality)

    def first(self, tokens: Tokens, **mode: Any) -> Tokens:
        return self._run(self.stages[: self.cut], tokens, mode)

    def second(self, tokens: Tokens, **mode: Any) -> Tokens:
        tokens = self._run(self.stages[self.cut :], tokens, mode)
        return tokens.replace_values(self.project(tokens.values))

    def _run(self, stages: list[Any], tokens: Tokens, mode: dict[str, Any]) -> Tokens:
        x, present = tokens.grid(), tokens.present
        span = tokens.layout[0]
        pixels = tuple(round(n * s) for n, s in zip(span.grid, span.stride, strict=True))
        for stage in stages:
            for block in stage:
                x = block(x, present, **mode)
        return _tokens(x, present, pixels, self.modality)


def _tokens(x: jax.Array, present: jax.Array, pixels: tuple[int, int], name: str) -> Tokens:
    """A feature map `[B, h, w, C]` as tokens at the centres of its cells, in pixels."""
    batch, height, width, channels = x.shape
    stride = (pixels[0] / height, pixels[1] / width)
    y = (jnp.arange(height, dtype=jnp.float32) + 0.5) * stride[0]
    z = (jnp.arange(width, dtype=jnp.float32) + 0.5) * stride[1]
    centres = jnp.stack(jnp.meshgrid(y, z, indexing="ij"), axis=-1).reshape(-1, 2)
    return Tokens.of(
        x.reshape(batch, height * width, channels),
        jnp.broadcast_to(present[:, None], (batch, height * width)),
        name,
        grid=(height, width),
        stride=stride,
        positions=jnp.broadcast_to(centres, (batch, *centres.shape)),
    )
