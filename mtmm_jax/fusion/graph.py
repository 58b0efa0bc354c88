"""Graphs: modalities or their tokens as nodes (GCN, GAT), or the samples of a batch as nodes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mtmm_jax.batch import Tokens, choose_all
from mtmm_jax.devices import parallel
from mtmm_jax.fusion.pooled import Concat
from mtmm_jax.fusion.transformer import (
    WithOriginals,
    apart,
    check_heads,
    float32,
    read_in,
)
from mtmm_jax.layers import batch_rows
from mtmm_jax.layers.attention import masked_softmax
from mtmm_jax.ranges import Blocks, Positive, Size
from mtmm_jax.registry import check_fields, choose

NODES = ("modality", "token")
Edges = Mapping[str, Iterable[str]] | None


def normalised(adjacency: jax.Array, present: jax.Array) -> jax.Array:
    """D^-1/2 (A + I) D^-1/2 over the present nodes; rows and columns of the others are zero.

    Args:
        adjacency: `[..., N, N]`, not negative; its diagonal is not read, nor are absent nodes.
        present: `[..., N]` bool.
    """
    both = present[..., :, None] & present[..., None, :]
    loops = jnp.eye(present.shape[-1], dtype=adjacency.dtype)
    adjacency = jnp.where(both, adjacency * (1.0 - loops) + loops, 0.0)
    # A present node has itself, so its degree is 1 or more.
    scale = jnp.where(present, jax.lax.rsqrt(jnp.maximum(adjacency.sum(-1), 1.0)), 0.0)
    return scale[..., :, None] * adjacency * scale[..., None, :]


def _linked(names: list[str], edges: Edges) -> np.ndarray:
    """`[M, M]` bool, symmetric: which modalities have edges between their nodes."""
    if edges is None:
        return np.ones((len(names), len(names)), bool)
    linked = np.zeros((len(names), len(names)), bool)
    choose_all(edges, names, "model.fusion.edges", "modality")
    for name, others in edges.items():
        others = [others] if isinstance(others, str) else list(others)
        choose_all(others, names, f"model.fusion.edges.{name}", "modality")
        for other in others:
            linked[names.index(name), names.index(other)] = True
    return linked | linked.T


def _graph(
    tokens: Mapping[str, Tokens], width: int, nodes: str, edges: Edges
) -> tuple[Tokens, jax.Array]:
    """The nodes as tokens, and who is whose neighbour, `[B, N, N]` bool, each its own included."""
    choose(nodes, NODES, "model.fusion.nodes")
    graph = read_in(tokens, width)
    linked = _linked(sorted(tokens), edges)
    if nodes == "modality":
        parts = apart(graph, tokens).values()
        graph = Tokens.join(Tokens(t.mean()[:, None], t.present[:, None]) for t in parts)
    else:
        lengths = [part.mask.shape[1] for _, part in sorted(tokens.items())]
        linked = linked.repeat(lengths, axis=0).repeat(lengths, axis=1)
    linked = linked | np.eye(len(linked), dtype=bool)
    return graph, linked & graph.mask[:, :, None] & graph.mask[:, None]


class GraphConvolution(nn.Module):
    """H <- relu(S H W), S = D^-1/2 (A + I) D^-1/2;  h = combine(mean H, x).

    Graph convolution (GCN); the last layer is linear. D counts only the nodes that a sample has.
    The result joins the original pooled features (`WithOriginals`).

    Paper: Kipf and Welling 2017, arXiv:1609.02907. Costs nodes^2 a layer. Use it: where it is known
    which modalities have to do with which, and `edges` says so. Not: with all pairs linked: S
    averages all nodes alike (`gat`).

    Attributes:
        width: of the nodes and the token that it gives.
        layers: how many steps along edges a feature may go.
        nodes: modality (its pooled features) or token.
        edges: modality -> the modalities that its nodes are linked to, both ways; all pairs by
            default. Tokens of one modality are linked where it names itself; each node is always
            its own neighbour.
        combine: concat or gated.
    """

    width: Size
    layers: Blocks = 2
    nodes: str = "modality"
    edges: Edges = None
    combine: str = "concat"

    modalities: ClassVar[tuple[int, int | None]] = (1, None)
    keeps_layout: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_fields(self, "model.fusion")
        super().__post_init__()

    @nn.compact
    def __call__(
        self, tokens: Mapping[str, Tokens], *, train: bool = False, axis_name: str | None = None
    ) -> Tokens:
        del train, axis_name
        graph, linked = _graph(tokens, self.width, self.nodes, self.edges)
        adjacency = normalised(linked.astype(jnp.float32), graph.mask)
        self.sow("intermediates", "adjacency", adjacency)
        h = _convolve(self.width, self.layers, adjacency, graph.values)
        combine = WithOriginals(self.width, self.combine, name="combine")
        return combine(graph.replace_values(h).mean(), tokens)


def _convolve(width: int, layers: int, adjacency: jax.Array | None, h: jax.Array) -> jax.Array:
    """`layers` graph convolutions inside the calling module; without edges if there is no A."""
    for layer in range(layers):
        h = h if adjacency is None else adjacency @ h
        h = nn.Dense(width, name=f"layer{layer + 1}")(h)
        h = h if layer == layers - 1 else nn.relu(h)
    return h


class AttentionLayer(nn.Module):
    """a_nm = softmax_m(LeakyReLU(s . W h_n + t . W h_m)) over n's neighbours;  h_n <- sum a W h_m.

    Attributes:
        features: of each head.
        heads: how many; each has its own W, s and t.
        average: whether the heads' results are averaged or stand side by side.
    """

    features: int
    heads: Blocks
    average: bool = False

    @nn.compact
    def __call__(self, h: jax.Array, linked: jax.Array) -> jax.Array:
        """`h[B, N, D]`, `linked[B, N, N]` bool."""
        shape = (self.heads, self.features)
        projected = nn.Dense(self.heads * self.features, use_bias=False, name="project")(h)
        projected = projected.reshape(*h.shape[:2], *shape)

        def score(name: str) -> jax.Array:
            vector = self.param(name, nn.initializers.glorot_uniform(), shape)
            return jnp.einsum("bnhd,hd->bhn", projected, vector)

        logits = score("score_own")[..., :, None] + score("score_other")[..., None, :]
        weights = masked_softmax(nn.leaky_relu(logits, 0.2), linked[:, None])
        self.sow("intermediates", "weights", weights)
        mixed = jnp.einsum("bhnm,bmhd->bnhd", weights, projected)
        mixed = mixed.mean(2) if self.average else mixed.reshape(*h.shape[:2], -1)
        return mixed + self.param("bias", nn.initializers.zeros, mixed.shape[-1:])


class GraphAttention(nn.Module):
    """H <- ELU(GAT(H)), as in `AttentionLayer`;  h = combine(mean H, x).

    Graph attention (GAT): neighbours are weighed by what they and the node say. The heads of the
    last layer are averaged, and it is linear. Nodes, edges and the join with the originals are
    those of `GraphConvolution`.

    Paper: Velickovic et al. 2018, arXiv:1710.10903. Costs heads x nodes^2 a layer. Use it: where
    the weights between modalities should be learned, sample by sample. Not: with two modalities of
    one token each; `gated_unit` says as much.

    Attributes:
        heads: of each layer.
        others: as in `GraphConvolution`.
    """

    width: Size
    layers: Blocks = 2
    heads: Blocks = 4
    nodes: str = "modality"
    edges: Edges = None
    combine: str = "concat"

    modalities: ClassVar[tuple[int, int | None]] = (1, None)
    keeps_layout: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_fields(self, "model.fusion")
        super().__post_init__()

    @nn.compact
    def __call__(
        self, tokens: Mapping[str, Tokens], *, train: bool = False, axis_name: str | None = None
    ) -> Tokens:
        del train, axis_name
        check_heads(self.width, self.heads)
        graph, linked = _graph(tokens, self.width, self.nodes, self.edges)
        self.sow("intermediates", "adjacency", linked)
        h = graph.values
        for layer in range(self.layers):
            last = layer == self.layers - 1
            features = self.width if last else self.width // self.heads
            h = AttentionLayer(features, self.heads, last, name=f"layer{layer + 1}")(h, linked)
            h = h if last else nn.elu(h)
        combine = WithOriginals(self.width, self.combine, name="combine")
        return combine(graph.replace_values(h).mean(), tokens)


class PopulationGraph(nn.Module):
    """A_ij = exp((cos(x_i, x_j) - 1) / temperature) among nearest neighbours;  H <- relu(S H W).

    The samples of the batch are the nodes, each linked with the samples whose pooled features are
    among its `neighbours` most similar, and with those that it is so near to; S as in
    `GraphConvolution`, h joins the original pooled features. On several devices the graph is over
    the rows of all of them.

    It MIXES ROWS, and only in training: in evaluation each sample is a graph of its own, S = 1, so
    that test rows see neither each other nor the training rows. There is no population then, and no
    adjacency to draw: it is handed over in training only. That costs: features that were averages
    over neighbours in training are single samples' in evaluation, a shift that only regularises
    where classes are tight clusters; what a sample gets in training depends on who else is in its
    batch; and the loss does not add over microbatches, in which there are fewer neighbours.

    Paper: Parisot et al. 2017, arXiv:1703.03020. Costs batch^2 x width a layer, repeated on each
    device. Use it: where classes are tight clusters and a batch is a fair sample of them. Not:
    otherwise, nor with microbatches: rows mix in training and not in evaluation.

    Attributes:
        width: of the nodes and the token that it gives.
        neighbours: how many a sample chooses.
        temperature: how fast an edge's weight falls with the distance.
        layers, combine: as in `GraphConvolution`.
    """

    width: Size
    neighbours: Size = 4
    temperature: Positive = 0.5
    layers: Blocks = 2
    combine: str = "concat"

    modalities: ClassVar[tuple[int, int | None]] = (1, None)
    keeps_layout: ClassVar[bool] = False
    mixes_rows: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_fields(self, "model.fusion")
        super().__post_init__()

    @nn.compact
    def __call__(
        self, tokens: Mapping[str, Tokens], *, train: bool = False, axis_name: str | None = None
    ) -> Tokens:
        pooled = Concat(self.width, name="pool")(float32(tokens))
        h, adjacency = pooled.values[:, 0], None
        if train:
            h, present = (parallel.gather(x, axis_name) for x in (h, pooled.mask[:, 0]))
            weights = similarity_graph(h, present, self.neighbours, self.temperature)
            adjacency = normalised(weights, present)
            self.sow("intermediates", "adjacency", adjacency)
        h = _convolve(self.width, self.layers, adjacency, h)
        rows = pooled.mask.shape[0]
        start = batch_rows(rows, axis_name)[0] if train else 0
        own = jax.lax.dynamic_slice_in_dim(h, start, rows)
        return WithOriginals(self.width, self.combine, name="combine")(own, tokens)


def similarity_graph(
    x: jax.Array, present: jax.Array, neighbours: int, temperature: float
) -> jax.Array:
    """`[N, N]`: exp((cos(x_i, x_j) - 1) / temperature) if one is among the other's nearest, or 0.

    Args:
        x: `[N, D]`.
        present: `[N]` bool: who may be anybody's neighbour.
        neighbours: how many each chooses; ties choose more.
        temperature: above 0.
    """
    unit = x * jax.lax.rsqrt(jnp.square(x).sum(-1, keepdims=True) + 1e-12)
    cosine = unit @ unit.T
    count = len(x)
    allowed = present[:, None] & present[None] & ~jnp.eye(count, dtype=bool)
    ranked = jnp.where(allowed, jax.lax.stop_gradient(cosine), -jnp.inf)
    farthest = jax.lax.top_k(ranked, min(neighbours, count))[0][:, -1:]
    chosen = allowed & (ranked >= farthest)
    return jnp.where(chosen | chosen.T, jnp.exp((cosine - 1.0) / temperature), 0.0)
