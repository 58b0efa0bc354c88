"""The rule of every fusion, a row at a time, in NumPy and float64; and the rows to try it on.

A formula is called as `formula(params, row, module)`: the parameters, what is there of one row, and
the Linen module, whose fields are its options. It gives the tokens that are there of the result.
What is masked or absent does not exist for it.
"""

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import erf

from mtmm_jax.batch import Tokens, clean

WIDTH = 16
NAMES = ("audio", "image", "table", "text")


def patterns(modalities):
    """`[2^M + 3, M]`: every subset of present modalities, nobody first, and all thrice more."""
    every = [*itertools.product([False, True], repeat=modalities), *3 * [(True,) * modalities]]
    return np.array(every)


def inputs(modalities, *, filler=np.nan, seed=0, places=False):
    """What a batch says of features: rows of all patterns, `filler` where nothing is.

    The image has no positions unless `places`.
    """
    rng = np.random.default_rng(seed)
    here = patterns(modalities)
    found = {}
    for i, name in enumerate(NAMES[:modalities]):
        shape = (len(here), 3 + i)
        mask = rng.random(shape) < 0.7
        mask[:, 1] = True
        there = mask & here[:, [i]]
        x = rng.standard_normal((*shape, 8 + 2 * i))
        at = np.sort(rng.uniform(0, 3 + i, (*shape, 1)), axis=1)
        entry = {"x": x, "positions": at} if places or name != "image" else {"x": x}
        silent = {k: np.where(there[..., None], v, filler) for k, v in entry.items()}
        silent = {key: value.astype(np.float32) for key, value in silent.items()}
        found[name] = {**silent, "mask": mask, "present": here[:, i]}
    return found


def entrance(given, under):
    """Tokens as a model's entrance makes them, in no order. Beneath their masks, where encoders
    leave what they like, stands `under` if it is not 0."""
    tokens = {}
    for name, entry in reversed(clean(given).items()):
        left = entry["mask"][..., None] | (jnp.asarray(under) == 0)
        values, at = (
            None if x is None else jnp.where(left, x, jnp.asarray(under, x.dtype))
            for x in (entry["x"], entry.get("positions"))
        )
        tokens[name] = Tokens.of(values, entry["mask"], name, positions=at)
    return tokens


_entrance = jax.jit(entrance)


@functools.cache
def _tokens_of(modalities, under, **options):
    return jax.device_get(_entrance(inputs(modalities, **options), under))


def tokens_of(modalities, under=1e3, **options):
    """The dict of `Tokens` that fusions read, in no order and on the host."""
    tokens = _tokens_of(modalities, under, **options)
    return {name: tokens[name] for name in reversed(NAMES[:modalities])}


class Row(NamedTuple):
    """What is there of a row: `x[modality][n, D]` and `at[modality][n, 1]`, present ones only."""

    names: tuple
    x: dict
    at: dict


def row_of(tokens, i):
    names = tuple(sorted(tokens))
    masks = {m: tokens[m].mask[i] for m in names if tokens[m].mask[i].any()}
    values = {m: tokens[m].values[i][mask].astype(np.float64) for m, mask in masks.items()}
    at = {
        m: tokens[m].positions[i][mask].astype(np.float64)
        for m, mask in masks.items()
        if tokens[m].positions is not None
    }
    return Row(names, values, at)


def float64(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


# Parts.


def norm(p, x):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return x * p["scale"] + p["bias"]


def dense(p, x):
    return x @ p["kernel"] + p.get("bias", 0.0)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def gelu(x):
    return x * (1 + erf(x / np.sqrt(2))) / 2


def _unit_root(z):
    root = np.sign(z) * np.sqrt(np.abs(z))
    return root / np.linalg.norm(root, axis=-1, keepdims=True)


def _outer(vectors):
    return functools.reduce(np.multiply.outer, vectors)


def pooled(p, row):
    """`{present modality: normed mean}`."""
    return {m: norm(p[f"norm_{m}"], x.mean(0)) for m, x in row.x.items()}


def _or_zero(p, row):
    """`pooled`, and zeros for the absent."""
    x = pooled(p, row)
    return {m: x.get(m, np.zeros_like(p[f"norm_{m}"]["scale"])) for m in row.names}


def _sinusoid(at):
    periods = 10_000.0 ** (np.arange(WIDTH // 2) / (WIDTH // 2))
    return np.concatenate([np.sin(at / periods), np.cos(at / periods)], axis=-1)


def _read(p, row):
    """`{present modality: [n, WIDTH]}` as `Join` reads it in."""
    read = {m: dense(p[f"project_{m}"], x) + p[f"modality_{m}"] for m, x in row.x.items()}
    return {m: x + _sinusoid(row.at[m]) if m in row.at else x for m, x in read.items()}


def _block(p, z, heads, x=None):
    """z + Attention(LN z over LN x), then z + FeedForward(LN z); of z over itself without x."""
    if x is None:
        asking = x = norm(p["attention_norm"], z)
    else:
        asking, x = norm(p["query_norm"], z), norm(p["input_norm"], x)
    given = {"query": asking, "key": x, "value": x}
    query, key, value = (
        np.split(dense(p["attention"][role], y), heads, axis=-1) for role, y in given.items()
    )
    mixed = [
        softmax(q @ k.T / np.sqrt(WIDTH // heads)) @ v
        for q, k, v in zip(query, key, value, strict=True)
    ]
    z = z + dense(p["attention"]["out"], np.concatenate(mixed, axis=-1))
    h = gelu(dense(p["feed_forward"]["up"], norm(p["feed_forward_norm"], z)))
    return z + dense(p["feed_forward"]["down"], h)


def _trunk(p, x, module):
    for layer in range(module.layers):
        x = _block(p[f"layer{layer + 1}"], x, module.heads)
    return norm(p["norm"], x)


def combined(p, found, row, module):
    """What a fusion found, with the modalities' own pooled features."""
    u = dense(p["found"], norm(p["norm"], found))
    o = originals(p["original"], row)
    if module.combine == "concat":
        return u + o
    gate = sigmoid(dense(p["gate"], np.concatenate([u, o])))
    return gate * u + (1 - gate) * o


# Pooled features.


def originals(p, row, module=None):
    """`Concat`."""
    x = pooled(p, row)
    x = np.concatenate([x.get(m, p[f"absent_{m}"]) for m in row.names])
    if module is not None and module.hidden:
        x = gelu(dense(p["hidden"], x))
    return dense(p["out"], x)


def _mean(p, row, module):
    return np.mean([dense(p[f"value_{m}"], x) for m, x in pooled(p, row).items()], axis=0)


def _weighted(p, row, module):
    x = pooled(p, row)
    if module.weights is not None:
        a = {m: module.weights[m] for m in x}
    elif module.by_sample:
        a = {m: np.exp(dense(p[f"score_{m}"], x[m])[0]) for m in x}
    else:
        a = {m: np.exp(p[f"score_{m}"]) for m in x}
    return sum(a[m] * dense(p[f"value_{m}"], x[m]) for m in x) / sum(a.values())


def _query_first(row, module):
    query = module.query or row.names[0]
    return [query, *(m for m in row.names if m != query)]


def _others(p, x, query):
    rest = [dense(p[f"value_{m}"], x[m]) for m in x if m != query]
    return np.mean(rest, axis=0) if rest else np.ones(WIDTH)


def _gated(p, row, module):
    x, (query, *_) = pooled(p, row), _query_first(row, module)
    gate = sigmoid(dense(p[f"gate_{query}"], x[query])) if query in x else 1.0
    return dense(p["out"], gate * _others(p, x, query))


def _film(p, row, module):
    x, (query, *_) = pooled(p, row), _query_first(row, module)
    gamma, beta = np.ones(WIDTH), np.zeros(WIDTH)
    if query in x:
        gamma, beta = np.split(dense(p[f"film_{query}"], x[query]), 2)
    return dense(p["out"], gamma * _others(p, x, query) + beta)


def _gated_unit(p, row, module):
    x, names = pooled(p, row), row.names
    h = {m: np.tanh(dense(p[f"hidden_{m}"], x[m])) for m in x}
    read = np.concatenate(list(_or_zero(p, row).values()))
    gates = sigmoid(dense(p["gate"], read)).reshape(-1, WIDTH)
    if len(names) != 2:
        return sum(gates[i] * h[m] for i, m in enumerate(names) if m in x)
    if len(x) == 2:
        return gates[0] * h[names[0]] + (1 - gates[0]) * h[names[1]]
    return sum(h.values())


def _tensor(p, row, module):
    x, size = pooled(p, row), module.reduced
    u = {m: dense(p[f"reduce_{m}"], x[m]) if m in x else np.zeros(size) for m in row.names}
    return _outer([np.append(1.0, u[m]) for m in row.names]).ravel() @ p["out"]["kernel"]


def _low_rank(p, row, module):
    """By way of the whole tensor, which the fusion never makes."""
    z = _outer([np.append(1.0, x) for x in _or_zero(p, row).values()])
    y = p["bias"].copy()
    for r, o in np.ndindex(module.rank, WIDTH):
        weight = _outer([p[f"factor_{m}"][r][:, o] for m in row.names])
        y[o] += p["weights"][r] * (z * weight).sum()
    return y


def _multiplicative(p, row, module):
    """y(x_1 .. x_k) = x_k^T A(x_1 .. x_k-1) + B(x_1 .. x_k-1), A and B of the same form."""
    names, x = _query_first(row, module), _or_zero(p, row)
    there = {m: float(m in row.x) for m in names}
    if "reduce_" + names[0] in p:
        x = {m: there[m] * dense(p[f"reduce_{m}"], x[m]) for m in names}
    if module.form == "vector":  # y = (x_1 W + V) * P x_2 + x_1 U + b
        one, two = names
        value = there[two] * dense(p[f"value_{two}"], x[two])
        return dense(p[f"scale_{one}"], x[one]) * value + dense(p[f"shift_{one}"], x[one])

    def form(names, later=()):
        if not names:
            return p["weight_" + "_x_".join(later)] if later else p["bias"]
        *fewer, last = names
        return np.tensordot(x[last], form(fewer, (last, *later)), 1) + form(fewer, later)

    return form(names)


def _mlb(p, row, module):
    factors = [np.maximum(dense(p[f"factor_{m}"], x), 0) for m, x in pooled(p, row).items()]
    return dense(p["out"], np.prod(factors, axis=0))


def _mfb(p, row, module):
    z = np.prod([dense(p[f"factor_{m}"], x) for m, x in pooled(p, row).items()], axis=0)
    size = module.factor
    z = np.array([z[size * i : size * (i + 1)].sum() for i in range(module.hidden)])
    return dense(p["out"], _unit_root(z))


def _tucker(p, row, module):
    x, size, z = pooled(p, row), module.hidden, 0.0
    for r in range(module.rank):
        term = np.ones(size)
        for m in x:
            core = {k: v[..., size * r : size * (r + 1)] for k, v in p[f"core_{m}"].items()}
            term = term * dense(core, dense(p[f"project_{m}"], x[m]))
        z = z + term
    return dense(p["out"], z)


def _block_fusion(p, row, module):
    size, chunks = module.hidden // module.chunks, []
    u = {m: dense(p[f"project_{m}"], x) for m, x in pooled(p, row).items()}
    for c in range(module.chunks):
        z = np.zeros(size)
        for r in range(module.rank):
            own, term = slice(size * r, size * (r + 1)), np.ones(size)
            for m in u:
                core = {"kernel": p[f"core_{m}"][c][:, own], "bias": p[f"core_bias_{m}"][c][own]}
                term = term * dense(core, u[m][size * c : size * (c + 1)])
            z += term
        chunks.append(_unit_root(z))
    return dense(p["out"], np.concatenate(chunks))


# Experts.


def posterior(p, row):
    """Mean and variance of the product of experts."""
    belief = [np.split(dense(p[f"expert_{m}"], x), 2) for m, x in pooled(p, row).items()]
    precision = 1.0 + sum(np.exp(-b[1]) for b in belief)
    return sum(b[0] * np.exp(-b[1]) for b in belief) / precision, 1 / precision


def probabilities(p, x):
    """The router's."""
    return softmax(norm(p["norm"], x) @ p["routed"]["router"]["kernel"])


def routed(p, x, k):
    """x + sum_e g_e E_e(LN x)."""
    h, scores, p = norm(p["norm"], x), probabilities(p, x), p["routed"]
    best = np.argsort(-scores)[:k]
    y = x.copy()
    for e in best:
        gate = scores[e] / scores[best].sum() if k > 1 else scores[e]
        inner = gelu(h @ p["up"][e] + p["up_bias"][e])
        y += gate * (inner @ p["down"][e] + p["down_bias"][e])
    return y


def _mixture(p, row, module):
    by_token = module.route == "token"
    x = row.x if by_token else {m: x[None] for m, x in pooled(p, row).items()}
    given = [one for m in x for one in dense(p[f"project_{m}"], x[m])]
    y = np.array([routed(p, one, module.k) for one in given])
    return y if by_token else y.mean(0)


# Token sequences.


def _join(p, row, module):
    return np.concatenate(list(_read(p, row).values()))


def _transformer(p, row, module):
    x = np.concatenate([p["cls"]["values"], _join(p["read"], row, module)])
    x = _trunk(p["trunk"], x, module)
    return x if module.keeps_layout else x[:1]


def _bottleneck(p, row, module):
    """y_m = Block_m([x_m; b]);  b <- mean over the present m of b_m."""
    x = {m: dense(p[f"project_{m}"], values) for m, values in row.x.items()}
    x = {m: v + _sinusoid(row.at[m]) if m in row.at else v for m, v in x.items()}
    shared, count = p["bottlenecks"], module.bottlenecks
    for layer in range(module.layers):
        views = []
        for m in x:
            y = np.concatenate([x[m], shared])
            y = _block(p[f"layer{layer + 1}_{m}"], y, module.heads)
            x[m], view = y[:-count], y[-count:]
            views.append(view)
        shared = np.mean(views, axis=0)
    normed = [norm(p[f"norm_{m}"], x[m]) for m in x]
    return np.concatenate([*normed, norm(p["norm"], shared)])


def _non_local_gate(p, row, module):
    """h = softmax(Q K^T) V + Q; a learned query where the asking modality is absent."""
    read, (query, *_) = _read(p["read"], row), _query_first(row, module)
    asking = read.pop(query) if query in read else p[f"absent_{query}"]["values"]
    h = dense(p["query"], asking)
    if not read:
        return h
    others = np.concatenate(list(read.values()))
    weights = softmax(h @ dense(p["key"], others).T)
    return weights @ dense(p["value"], others) + h


def _crossmodal(p, row, module):
    """z_i = Self(x_i + W_i [Cross(x_i over x_j)]_j), j the present others;  W [mean z_i]_i + b."""
    total, read = p["bias"], _read(p["read"], row)
    for own, x in read.items():
        z = x
        for other in read:
            if other == own:
                continue
            pair, c = f"{own}_from_{other}", x
            for layer in range(module.layers):
                c = _block(p[f"{pair}_layer{layer + 1}"], c, module.heads, read[other])
            z = z + dense(p[f"{pair}_out"], norm(p[f"{pair}_norm"], c))
        for layer in range(module.layers):
            z = _block(p[f"{own}_layer{layer + 1}"], z, module.heads)
        total = total + dense(p[f"{own}_out"], norm(p[f"{own}_norm"], z).mean(0))
    return total


def _perceiver(p, row, module):
    x, z = _join(p["read"], row, module), p["latents"]["values"]
    for iteration in range(module.iterations):
        stem = "again" if iteration else "first"
        z = _block(p[f"{stem}_read"], z, module.heads, x)
        for layer in range(module.layers):
            z = _block(p[f"{stem}_layer{layer + 1}"], z, module.heads)
    return norm(p["norm"], z)


def _perceiver_io(p, row, module):
    z = _perceiver(p["perceiver"], row, module)
    return norm(p["norm"], _block(p["decode"], p["queries"]["values"], module.heads, z))


def _encoder_decoder(p, row, module):
    x = _trunk(p["encoder"], _join(p["read"], row, module), module)
    q = p["queries"]["values"]
    for layer in range(module.decoder_layers):
        q = _block(p[f"decoder{layer + 1}_read"], q, module.heads, x)
        q = _block(p[f"decoder{layer + 1}_self"], q, module.heads)
    return combined(p["combine"], q.ravel(), row, module)


# Graphs.


def _nodes(p, row, module):
    """The present nodes of a row, and which are neighbours, themselves among them."""
    read = _read(p["read"], row)
    if module.nodes == "modality":
        read = {m: x.mean(0, keepdims=True) for m, x in read.items()}
    owners = [m for m in read for _ in read[m]]
    edges, linked = module.edges, np.eye(len(owners), dtype=bool)
    for i, j in np.ndindex(linked.shape):
        one, two = owners[i], owners[j]
        linked[i, j] |= edges is None or two in edges.get(one, ()) or one in edges.get(two, ())
    return np.concatenate(list(read.values())), linked


def _gcn(p, row, module):
    h, linked = _nodes(p, row, module)
    degree = linked.sum(1)
    for layer in range(1, module.layers + 1):
        mixed = np.zeros_like(h)
        for i, j in np.argwhere(linked):
            mixed[i] += h[j] / np.sqrt(degree[i] * degree[j])
        h = dense(p[f"layer{layer}"], mixed)
        h = h if layer == module.layers else np.maximum(h, 0)
    return combined(p["combine"], h.mean(0), row, module)


def _gat(p, row, module):
    h, linked = _nodes(p, row, module)
    for layer in range(1, module.layers + 1):
        own = p[f"layer{layer}"]
        x = dense(own["project"], h).reshape(len(h), *own["score_own"].shape)
        mixed = np.zeros_like(x)
        for i, head in np.ndindex(x.shape[:2]):
            near = x[linked[i], head]
            logits = x[i, head] @ own["score_own"][head] + near @ own["score_other"][head]
            mixed[i, head] = softmax(np.where(logits > 0, logits, 0.2 * logits)) @ near
        last = layer == module.layers
        h = (mixed.mean(1) if last else mixed.reshape(len(h), -1)) + own["bias"]
        h = h if last else np.where(h > 0, h, np.expm1(np.minimum(h, 0)))
    return combined(p["combine"], h.mean(0), row, module)


def _population(p, row, module):
    """In evaluation: a graph of one node."""
    h = originals(p["pool"], row)
    for layer in range(1, module.layers + 1):
        h = dense(p[f"layer{layer}"], h)
        h = h if layer == module.layers else np.maximum(h, 0)
    return combined(p["combine"], h, row, module)


FORMULAS = {
    "concat": originals,
    "mean": _mean,
    "weighted": _weighted,
    "gated": _gated,
    "gated_unit": _gated_unit,
    "film": _film,
    "tensor": _tensor,
    "low_rank": _low_rank,
    "multiplicative": _multiplicative,
    "mlb": _mlb,
    "mfb": _mfb,
    "tucker": _tucker,
    "block": _block_fusion,
    "product_of_experts": lambda p, row, module: posterior(p, row)[0],
    "mixture_of_experts": _mixture,
    "join": _join,
    "transformer": _transformer,
    "transformer_tokens": _transformer,
    "bottleneck": _bottleneck,
    "nl_gate": _non_local_gate,
    "crossmodal": _crossmodal,
    "perceiver": _perceiver,
    "perceiver_io": _perceiver_io,
    "encoder_decoder": _encoder_decoder,
    "gcn": _gcn,
    "gat": _gat,
    "population": _population,
}
