"""Twins of the encoders in PyTorch, eager, as fast as they were found to be: channels-last, one
product for query, key and value, the kernels of `scaled_dot_product_attention` and `GRU`.

A twin is made of an encoder and of the `x` that it is to read, as NumPy has it; its parts are named
as ours, so that `blocks_peers.adopt` finds the place of every parameter. Needs `torch`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from mtmm_jax.encoders import audio, image, series
from mtmm_jax.encoders.encoder import MLPS
from mtmm_jax.layers import cells, sinusoid
from mtmm_jax.layers.spectrogram import FLOOR, mel_filters, sizes


class _Named(nn.Module):
    """A module whose parts are called as ours."""

    def __init__(self, parts: Mapping[str, nn.Module]) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)

    def run(self, names: Iterable[str], x: Any) -> Any:
        for name in names:
            x = self.get_submodule(name)(x)
        return x


def _tokens(x: Any) -> Any:
    """`[B, C, h, w] -> [B, h * w, C]`: a view, channels last."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


class _Block(_Named):
    def __init__(self, channels: int, features: int, stride: int) -> None:
        parts = {
            "conv1": nn.Conv2d(channels, features, 3, stride, 1, bias=False),
            "norm1": nn.BatchNorm2d(features),
            "conv2": nn.Conv2d(features, features, 3, 1, 1, bias=False),
            "norm2": nn.BatchNorm2d(features),
        }
        self.narrows = stride != 1 or channels != features
        if self.narrows:
            parts["shortcut"] = nn.Conv2d(channels, features, 1, stride, bias=False)
            parts["shortcut_norm"] = nn.BatchNorm2d(features)
        super().__init__(parts)

    def forward(self, x: Any) -> Any:
        h = F.relu(self.run(("conv1", "norm1"), x), inplace=True)
        h = self.run(("conv2", "norm2"), h)
        x = self.run(("shortcut", "shortcut_norm"), x) if hasattr(self, "shortcut") else x
        return F.relu(h.add_(x), inplace=True)


class _ResNet(_Named):
    def __init__(self, encoder: Any, x: np.ndarray) -> None:
        del x
        depths, widths = image.RESNETS[encoder.preset]
        parts: dict[str, nn.Module] = {
            "conv1": nn.Conv2d(3, widths[0], 3, 1, 1, bias=False),
            "norm1": nn.BatchNorm2d(widths[0]),
            "relu": nn.ReLU(inplace=True),
        }
        before = widths[0]
        for stage, (depth, features) in enumerate(zip(depths, widths, strict=True)):
            for index in range(depth):
                stride = 2 if stage > 0 and index == 0 else 1
                parts[f"stage{stage + 1}_block{index + 1}"] = _Block(before, features, stride)
                before = features
        super().__init__(parts)
        self.convolutions = tuple(parts)
        self.project = nn.Linear(before, encoder.width)

    def forward(self, x: Any) -> Any:
        return self.project(_tokens(self.run(self.convolutions, x)))


class _CNN(_Named):
    def __init__(self, encoder: Any, x: np.ndarray) -> None:
        del x
        channels = (3, *image.CNNS[encoder.preset])
        self.count = len(channels) - 1
        super().__init__(
            {
                f"conv{i}": nn.Conv2d(channels[i - 1], channels[i], 3, 1, 1)
                for i in range(1, len(channels))
            }
            | {"project": nn.Linear(channels[-1], encoder.width)}
        )

    def forward(self, x: Any) -> Any:
        for i in range(1, self.count + 1):
            x = F.relu(F.max_pool2d(self.run((f"conv{i}",), x), 2), inplace=True)
        return self.project(_tokens(x))


class _MLP(nn.Module):
    def __init__(self, encoder: Any, x: np.ndarray) -> None:
        super().__init__()
        self.masked = x.ndim == 2  # a table is read next to its mask
        inner, size = MLPS[encoder.preset], int(np.prod(x.shape[1:]))
        self.read = nn.Linear(2 * size if self.masked else size, inner)
        self.hidden = nn.Linear(inner, inner)
        self.project = nn.Linear(inner, encoder.width)

    def forward(self, x: Any) -> Any:
        x = (
            torch.cat([x, torch.ones_like(x)], 1)
            if self.masked
            else x.permute(0, 2, 3, 1).flatten(1)
        )
        h = F.gelu(self.read(x))
        return self.project(h + F.gelu(self.hidden(h)))[:, None]


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.all, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Any) -> Any:
        batch, count, width = x.shape
        parts = self.all(x).view(batch, count, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*parts.unbind(0))
        return self.out(mixed.transpose(1, 2).reshape(batch, count, width))


class _FeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Any) -> Any:
        return self.down(F.gelu(self.up(x)))


class _TransformerBlock(nn.Module):
    def __init__(self, width: int, heads: int, post_norm: bool) -> None:
        super().__init__()
        epsilon = 1e-12 if post_norm else 1e-6
        self.post_norm = post_norm
        self.attention, self.feed_forward = _Attention(width, heads), _FeedForward(width)
        self.attention_norm = nn.LayerNorm(width, eps=epsilon)
        self.feed_forward_norm = nn.LayerNorm(width, eps=epsilon)

    def forward(self, x: Any) -> Any:
        if self.post_norm:
            x = self.attention_norm(x + self.attention(x))
            return self.feed_forward_norm(x + self.feed_forward(x))
        x = x + self.attention(self.attention_norm(x))
        return x + self.feed_forward(self.feed_forward_norm(x))


class _Transformer(_Named):
    """The body; subclasses read."""

    post_norm = False

    def __init__(self, encoder: Any) -> None:
        layers, inner, heads = encoder.size
        blocks = {
            f"block{i + 1}": _TransformerBlock(inner, heads, self.post_norm) for i in range(layers)
        }
        super().__init__(blocks)
        self.blocks = tuple(blocks)
        if not self.post_norm:
            self.norm = nn.LayerNorm(inner, eps=1e-6)
        self.project = nn.Linear(inner, encoder.width)

    def body(self, x: Any) -> Any:
        x = self.run(self.blocks, x)
        return self.project(x if self.post_norm else self.norm(x))


class _Text(_Transformer):
    def __init__(self, encoder: Any, x: np.ndarray) -> None:
        super().__init__(encoder)
        self.embedding = nn.Embedding(encoder.vocabulary, encoder.size[1])
        at = np.asarray(sinusoid(np.arange(float(x.shape[1]))[:, None], encoder.size[1]))
        self.register_buffer("at", torch.from_numpy(at.astype(np.float32)))

    def forward(self, x: Any) -> Any:
        return self.body(self.embedding(x) + self.at)


class _Bert(_Transformer):
    post_norm = True

    def __init__(self, encoder: Any, x: np.ndarray) -> None:
        del x
        super().__init__(encoder)
        inner = encoder.size[1]
        self.embedding = nn.Embedding(encoder.vocabulary, inner)
        self.positions = nn.Parameter(torch.empty(encoder.length, inner))
        self.types = nn.Parameter(torch.empty(encoder.types, inner))
        self.embedding_norm = nn.LayerNorm(inner, eps=1e-12)

    def forward(self, x: Any) -> Any:
        x = self.embedding(x) + self.positions[: x.shape[1]] + self.types[0]
        return self.body(self.embedding_norm(x))


class _ViT(_Transformer):
    def __init__(self, encoder: Any, x: np.ndarray) -> None:
        super().__init__(encoder)
        self.patch, inner = encoder.patch, encoder.size[1]
        self.patches = nn.Linear(x.shape[-1] * self.patch**2, inner)
        grid = [side // self.patch for side in x.shape[1:3]]
        at = np.array(sinusoid(cells(grid, (1.0, 1.0)), inner))
        self.register_buffer("at", torch.from_numpy(at))

    def forward(self, x: Any) -> Any:
        batch, channels, height, width = x.shape
        p = self.patch
        x = x.permute(0, 2, 3, 1).view(batch, height // p, p, width // p, p, channels)
        x = x.transpose(2, 3).reshape(batch, -1, p * p * channels)
        return self.body(self.patches(x) + self.at)


class _GRU(nn.Module):
    """The second recurrence reads what the first one says, from the end."""

    def __init__(self, encoder: Any, x: np.ndarray) -> None:
        super().__init__()
        size = encoder.size
        if x.ndim == 2:
            self.embedding = nn.Embedding(encoder.vocabulary, size)
        else:
            self.read = nn.Linear(x.shape[-1], size)
        self.ahead = nn.GRU(size, size, batch_first=True)
        self.add_module("backward", nn.GRU(size, size, batch_first=True))
        self.project = nn.Linear(2 * size, encoder.width)

    def forward(self, x: Any) -> Any:
        x = self.embedding(x) if hasattr(self, "embedding") else self.read(x)
        ahead = self.ahead(x)[0]
        back = self.get_submodule("backward")(ahead.flip(1))[0].flip(1)
        return self.project(torch.cat([ahead, back], -1))


class _Conv1D(_Named):
    """Convolutions over time as images of height 1, which know channels-last."""

    def __init__(self, encoder: Any, x: np.ndarray) -> None:
        del x
        stride, channels = round(0.008 * encoder.rate), series.CONVS[encoder.preset]
        first = nn.Conv2d(1, channels[0], (1, 2 * stride), stride, (0, stride // 2), bias=False)
        parts: dict[str, nn.Module] = {"conv1": first}
        for i, (a, b) in enumerate(itertools.pairwise(channels), start=2):
            parts[f"conv{i}"] = nn.Conv2d(a, b, (1, 3), (1, 2), (0, 1), bias=False)
        for i, c in enumerate(channels, start=1):
            parts[f"norm{i}"] = nn.BatchNorm2d(c)
        super().__init__(parts)
        self.count = len(channels)
        self.project = nn.Linear(channels[-1], encoder.width)

    def forward(self, x: Any) -> Any:
        x = x[:, None, None]
        for i in range(1, self.count + 1):
            x = F.relu(self.run((f"conv{i}", f"norm{i}"), x), inplace=True)
        return self.project(_tokens(x))


class _LogMel(nn.Module):
    """The front end: each band's own mean is taken out."""

    def __init__(self, rate: float, mels: int) -> None:
        super().__init__()
        self.size, self.hop, length = sizes(rate, audio.WINDOW, audio.HOP)
        self.length = length
        self.register_buffer("window", torch.hann_window(self.size))
        self.register_buffer("bands", torch.from_numpy(mel_filters(length // 2 + 1, mels, rate)))

    def forward(self, x: Any) -> Any:
        frames = x.unfold(1, self.size, self.hop) * self.window
        spectrum = torch.view_as_real(torch.fft.rfft(frames, self.length))
        mel = torch.log(FLOOR + spectrum.square().sum(-1) @ self.bands)
        return (mel - mel.mean(1, keepdim=True)) / 3.0


class _LogMelCNN(_Named):
    def __init__(self, encoder: Any, x: np.ndarray) -> None:
        del x
        channels = (1, *audio.CNNS[encoder.preset])
        parts: dict[str, nn.Module] = {}
        for i in range(1, len(channels)):
            a, b = channels[i - 1], channels[i]
            parts[f"conv{i}"] = nn.Conv2d(a, b, 3, 2, 1, bias=False)
            parts[f"norm{i}"] = nn.BatchNorm2d(b)
        super().__init__(parts)
        self.count = len(channels) - 1
        self.front = _LogMel(encoder.rate, encoder.mels)
        bands = -(-encoder.mels // 2**self.count)
        self.project = nn.Linear(bands * channels[-1], encoder.width)

    def forward(self, x: Any) -> Any:
        x = self.front(x)[:, None]
        for i in range(1, self.count + 1):
            x = F.relu(self.run((f"conv{i}", f"norm{i}"), x), inplace=True)
        return self.project(x.permute(0, 2, 3, 1).flatten(2))


TWINS: dict[str, Callable[[Any, np.ndarray], nn.Module]] = {
    "resnet": _ResNet,
    "cnn": _CNN,
    "vit": _ViT,
    "image_mlp": _MLP,
    "text_transformer": _Text,
    "bert": _Bert,
    "text_gru": _GRU,
    "log_mel": lambda encoder, x: _LogMel(16_000.0, 40),
    "log_mel_cnn": _LogMelCNN,
    "conv1d": _Conv1D,
    "series_gru": _GRU,
    "table_mlp": _MLP,
}
