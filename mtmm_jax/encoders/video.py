"""Clips `[B, T, H, W, 3]` -> tokens: any image encoder on each frame, then a body over time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax.core import FrozenDict

from mtmm_jax import registry
from mtmm_jax.batch import Modality, Tokens
from mtmm_jax.encoders.encoder import Encoder, mask_of
from mtmm_jax.encoders.image import CNN, MLPImage, ResNet
from mtmm_jax.encoders.sequence import GRUEncoder, MeanEncoder, TransformerEncoder
from mtmm_jax.encoders.vit import ViT
from mtmm_jax.layers import sinusoid
from mtmm_jax.ranges import Positive, Size
from mtmm_jax.registry import ConfigError

FRAMES = {"cnn": CNN, "resnet": ResNet, "vit": ViT, "image_mlp": MLPImage}
TEMPORAL = {"mean": MeanEncoder, "gru": GRUEncoder, "transformer": TransformerEncoder}


class VideoFrames(Encoder):
    """Each frame's tokens, averaged -> over time: a mean, a GRU or a Transformer.

    Only frames that are there are counted: in the means, and in the frame encoder's BatchNorm.

    Paper: Donahue et al. 2015, arXiv:1411.4389. Costs the frame encoder once a frame, and little
    over time. Use it: first, with an encoder of pictures that works. Not: where motion within a few
    pixels decides (`video_tubelets`).

    Attributes:
        modality: the name that its tokens carry.
        rate: frames per second, if known.
        frame: an image encoder: a kind, or a config with `kind` and its hyper-parameters.
        frame_width: width of each frame's vector; inner width of a temporal Transformer.
        temporal: "mean" (one token), "gru" or "transformer" (a token per frame), or a config with
            `kind` and its hyper-parameters.
        projected: whether a linear map to `width` ends it. A mean and a GRU can do without: the
            width is then `frame_width`, or the recurrences'.
    """

    modality: str = "video"
    rate: Positive | None = None
    frame: str | Mapping[str, Any] = "cnn"
    frame_width: Size = 128
    temporal: str | Mapping[str, Any] = "gru"
    projected: bool = True

    def __post_init__(self) -> None:
        for field in ("frame", "temporal"):  # a ConfigDict has no hash, and a module needs one
            value = getattr(self, field)
            if isinstance(value, Mapping) or hasattr(value, "to_dict"):
                object.__setattr__(self, field, FrozenDict(dict(value)))
        super().__post_init__()

    @property
    def features(self) -> int:
        body = registry.entry_of(self.temporal)
        kind = body.pop("kind", None)
        if kind == "mean":
            return self.frame_width
        if kind == "gru":
            return GRUEncoder(1, parent=None, **body, projected=False).width
        raise ConfigError(
            f"{self.modality}.projected: False, and over time only a mean or a GRU can do without "
            f"a projection, not {kind!r}"
        )

    @staticmethod
    def accepts(modality: Modality) -> bool:
        return modality.is_a("video") and len(modality.shape) == 4

    def setup(self) -> None:
        self.frames = registry.build(
            FRAMES,
            self.frame,
            where=f"{self.modality}.frame",
            width=self.frame_width,
            modality=self.modality,
            dtype=self.dtype,
        )
        self.body = registry.build(
            TEMPORAL,
            self.temporal,
            where=f"{self.modality}.temporal",
            width=self.width,
            dtype=self.dtype,
            projected=self.projected,
        )
        if self.frames.width != self.frame_width:
            raise ConfigError(
                f"{self.modality}.frame.projected: False gives {self.frames.width} features, not "
                f"the {self.frame_width} of frame_width"
            )

    def stem(self, entry: Mapping[str, Any], **mode: Any) -> Tokens:
        x, mask = entry["x"], mask_of(entry)
        batch, steps = mask.shape
        frames = {"x": x.reshape(batch * steps, *x.shape[2:]), "present": mask.reshape(-1)}
        values = self.frames(frames, **mode).mean().reshape(batch, steps, -1)
        order = jnp.arange(steps, dtype=jnp.float32)[:, None]
        if isinstance(self.body, TransformerEncoder):
            values = values + sinusoid(order, values.shape[-1])
        seconds = 1.0 / (self.rate or 1.0)
        at = jnp.broadcast_to(order * seconds, (batch, steps, 1))
        return Tokens.of(values, mask, self.modality, stride=(seconds,), positions=at)

    def first(self, tokens: Tokens, **mode: Any) -> Tokens:
        return self.body.first(tokens, **mode)

    def second(self, tokens: Tokens, **mode: Any) -> Tokens:
        return self.body.second(tokens, **mode)
