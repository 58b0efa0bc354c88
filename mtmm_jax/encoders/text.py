"""Token ids -> tokens: Transformers (BERT among them), a GRU and a bag of embeddings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from mtmm_jax.batch import Modality, Tokens
from mtmm_jax.encoders.encoder import Encoder, mask_of
from mtmm_jax.encoders.sequence import GRUEncoder, TransformerEncoder
from mtmm_jax.layers import Dropout, LayerNorm, TransformerBlock, sinusoid
from mtmm_jax.ranges import Decay, Positive, Size, SizeOrZero
from mtmm_jax.registry import ConfigError, choose

BAGS = {"tiny": 128, "small": 512}
# preset -> layers, width, heads; the hidden layers are four times as wide
BERTS = {"tiny": (2, 128, 2), "minilm": (6, 384, 12), "base": (12, 768, 12)}


def _accepts(modality: Modality) -> bool:
    return modality.is_a("text") and modality.vocabulary is not None


def _embed(
    entry: Mapping[str, Any], table: nn.Embed, forget: Dropout, name: str, mode: dict[str, Any]
) -> Tokens:
    """Embeddings of the ids, some forgotten whole; positions are their places in the text."""
    ids, mask = entry["x"], mask_of(entry)
    order = jnp.broadcast_to(jnp.arange(ids.shape[1], dtype=jnp.float32)[:, None], (*ids.shape, 1))
    values = table(ids)
    kept = forget(jnp.ones((*ids.shape, 1), values.dtype), **mode)
    return Tokens.of(values * kept, mask, name, positions=order)


class TransformerText(TransformerEncoder):
    """Embeddings + sinusoidal positions -> pre-norm Transformer.

    Paper: Vaswani et al. 2017, arXiv:1706.03762. Costs the square of the length, in each layer. Use
    it: for texts from scratch, with tens of thousands of rows. Not: with fewer (`text_bag`,
    `pretrained`).

    Attributes:
        vocabulary: the number of token ids.
        modality: the name that its tokens carry.
        word_dropout: zeroes whole token embeddings in training.
    """

    vocabulary: SizeOrZero = 0
    modality: str = "text"
    word_dropout: Decay = 0.0

    accepts = staticmethod(_accepts)

    def setup(self) -> None:
        super().setup()
        inner = self.size[1]
        self.embedding = nn.Embed(
            self.vocabulary, inner, embedding_init=nn.initializers.normal(0.02 * inner**0.5)
        )
        self.forget = Dropout(self.word_dropout)

    def stem(self, entry: Mapping[str, Any], **mode: Any) -> Tokens:
        tokens = _embed(entry, self.embedding, self.forget, self.modality, mode)
        positions = sinusoid(tokens.positions, tokens.values.shape[-1])
        return tokens.replace_values(tokens.values + positions)


class Bert(TransformerEncoder):
    """Embeddings, norm -> post-norm Transformer.

    `backbones.bert` reads Hugging Face's weights. The order of tokens is learned, up to `length`.

    Paper: Devlin et al. 2019, arXiv:1810.04805. Costs the square of the length, in each layer. Use
    it: with the weights of Hugging Face. Not: from scratch; `text_transformer` is pre-norm and
    learns faster.

    Attributes:
        vocabulary: the number of token ids.
        modality: the name that its tokens carry.
        preset: size: tiny, minilm (MiniLM-L6) or base.
        sizes: instead of a preset's: layers, width, heads, width of the hidden layers.
        epsilon: of the norms.
        length: the most tokens that it reads.
        types: kinds of segment.
        separator: the id of [SEP]; tokens after the first one are of the second kind, and so on.
            None: all are of the first kind.
        word_dropout: zeroes whole token embeddings in training.
        projected: whether a linear map to `width` ends it; else the width is the preset's.
    """

    vocabulary: SizeOrZero = 0
    modality: str = "text"
    sizes: Sequence[Size] | None = None
    epsilon: Positive = 1e-12
    length: Size = 512
    types: Size = 2
    separator: SizeOrZero | None = None
    word_dropout: Decay = 0.0
    projected: bool = True

    presets: ClassVar[Mapping[str, tuple[int, ...]]] = BERTS
    accepts = staticmethod(_accepts)

    @property
    def size(self) -> tuple[int, ...]:
        """Layers, width, heads, width of the hidden layers."""
        if self.sizes is None:
            layers, inner, heads = super().size
            return layers, inner, heads, 4 * inner
        if len(self.sizes) != 4:
            raise ConfigError(
                f"bert.sizes: {list(self.sizes)} is not layers, width, heads, hidden width"
            )
        return tuple(self.sizes)

    def setup(self) -> None:
        layers, inner, heads, hidden = self.size
        spread = nn.initializers.normal(0.02)
        self.embedding = nn.Embed(self.vocabulary, inner, embedding_init=spread)
        self.positions = self.param("positions", spread, (self.length, inner))
        self.segments = self.param("types", spread, (self.types, inner))
        self.embedding_norm = LayerNorm(self.epsilon)
        self.forget = Dropout(self.word_dropout)
        self.drop = Dropout(self.dropout)
        self.blocks = [
            TransformerBlock(
                heads,
                hidden=hidden,
                dropout=self.dropout,
                post_norm=True,
                epsilon=self.epsilon,
                dtype=self.precision,
                name=f"block{i + 1}",
            )
            for i in range(layers)
        ]
        self.project = self.projection()

    @property
    def features(self) -> int:
        return self.size[1]

    def stem(self, entry: Mapping[str, Any], **mode: Any) -> Tokens:
        ids = entry["x"]
        if ids.shape[1] > self.length:
            raise ConfigError(
                f"bert.length: {ids.shape[1]} tokens are more than the {self.length} whose "
                f"positions are known; choose a shorter length of {self.modality!r} in the data"
            )
        tokens = _embed(entry, self.embedding, self.forget, self.modality, mode)
        x = tokens.values + self.positions[: ids.shape[1]] + self.segments[self._types(ids)]
        return tokens.replace_values(self.drop(self.embedding_norm(x), **mode))

    def second(self, tokens: Tokens, **mode: Any) -> Tokens:
        tokens = self._run(self.blocks[self.cut :], tokens, mode)
        return tokens.replace_values(self.project(tokens.values))

    def _types(self, ids: jax.Array) -> jax.Array:
        if self.separator is None:
            return jnp.zeros_like(ids)
        ends = (ids == self.separator).astype(ids.dtype)
        return jnp.minimum(jnp.cumsum(ends, axis=1) - ends, self.types - 1)


class GRUText(GRUEncoder):
    """Embeddings -> GRU.

    Paper: Cho et al. 2014, arXiv:1406.1078. Costs 3 D^2 a token, one after the other. Use it: for
    short texts whose order matters, with few rows. Not: for long ones on an accelerator: steps
    cannot run in parallel.

    Attributes:
        vocabulary: the number of token ids.
        modality: the name that its tokens carry.
        word_dropout: zeroes whole token embeddings in training.
        embedding_width: of the embeddings; None: as wide as the GRU.
    """

    vocabulary: SizeOrZero = 0
    modality: str = "text"
    word_dropout: Decay = 0.0
    embedding_width: Size | None = None

    accepts = staticmethod(_accepts)

    def setup(self) -> None:
        super().setup()
        self.embedding = nn.Embed(self.vocabulary, self.embedding_width or self.size)
        self.forget = Dropout(self.word_dropout)

    def stem(self, entry: Mapping[str, Any], **mode: Any) -> Tokens:
        return _embed(entry, self.embedding, self.forget, self.modality, mode)


class BagText(Encoder):
    """The mean of the words' embeddings, then a hidden layer: one token, whatever their order.

    Paper: Iyyer et al. 2015. Costs one sum over the tokens: the cheapest text encoder. Use it: on
    long texts with few labels, where it is hard to beat. Not: where the order of words decides.

    Attributes:
        vocabulary: the number of token ids.
        modality: the name that its tokens carry.
        preset: size: tiny or small.
        word_dropout: forgets whole words in training.
        dropout: rate on the mean.
    """

    vocabulary: SizeOrZero = 0
    modality: str = "text"
    preset: str = "tiny"
    word_dropout: Decay = 0.0
    dropout: Decay = 0.1

    accepts = staticmethod(_accepts)

    def setup(self) -> None:
        inner = BAGS[choose(self.preset, BAGS, "bag_text.preset", "preset")]
        self.embedding = nn.Embed(self.vocabulary, inner)
        self.forget = Dropout(self.word_dropout)
        self.hidden = nn.Dense(inner, dtype=self.precision)
        self.drop = Dropout(self.dropout)
        self.project = nn.Dense(self.width, dtype=jnp.float32)

    def stem(self, entry: Mapping[str, Any], **mode: Any) -> Tokens:
        return _embed(entry, self.embedding, self.forget, self.modality, mode)

    def first(self, tokens: Tokens, **mode: Any) -> Tokens:
        mean = self.drop(tokens.mean(), **mode)
        return Tokens.of(mean[:, None], tokens.present[:, None], self.modality)

    def second(self, tokens: Tokens, **mode: Any) -> Tokens:
        del mode
        return tokens.replace_values(self.project(nn.relu(self.hidden(tokens.values))))
