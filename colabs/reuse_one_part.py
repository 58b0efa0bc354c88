# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # One part in your own project
#
# Nothing here needs a config or the training loop: a balancing method is an Optax transform, a
# fusion is a Flax module. Each works by itself.

# %%
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("mtmm_jax") is None:
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "mtmm_jax"], check=True)

# %%
import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

from mtmm_jax import balancing
from mtmm_jax.batch import Tokens
from mtmm_jax.fusion import LowRankTensor

# %% [markdown]
# ## A balancing transform in a plain Optax loop
#
# Two regressions share a layer, and one of them speaks fifty times as loud. The transform stands
# first in the chain and takes the gradients of both, stacked: a leaf `[2, ...]` is balanced into
# one of shape `[...]`.

# %%
x = jax.random.normal(jax.random.key(0), (256, 8))
true = jax.random.normal(jax.random.key(1), (8, 2))
y = jnp.tanh(x @ true) * jnp.array([1.0, 7.0])  # squared errors fifty times as large


def losses(params):
    """One loss for each task."""
    hidden = jnp.tanh(x @ params["shared"])
    return jnp.square(hidden @ params["heads"] - y).mean(0)


def learn(balancer, steps=300):
    """The losses on the way, each as a share of its first."""
    start = 0.3 * jax.random.normal(jax.random.key(2), (8 * 4 + 4 * 2,))
    params = {"shared": start[:32].reshape(8, 4), "heads": start[32:].reshape(4, 2)}
    optimizer = optax.chain(balancer, optax.sgd(0.05))  # <- the one line

    @jax.jit
    def step(params, state):
        values = losses(params)
        grads = jax.jacrev(losses)(params)
        updates, state = optimizer.update(grads, state, params, losses=values)
        return optax.apply_updates(params, updates), state, values

    state, course = optimizer.init(params), []
    for _ in range(steps):
        params, state, values = step(params, state)
        course.append(values)
    return np.array(course) / np.array(course[0])


figure, axes = plt.subplots(1, 3, figsize=(12, 2.8), sharey=True, layout="constrained")
for axis, name in zip(axes, ("equal", "pcgrad", "imtl_g"), strict=True):
    axis.semilogy(learn(balancing.METHODS[name](2)), label=["quiet task", "loud task"])
    axis.set_title(name)
    axis.set_xlabel("step")
axes[0].set_ylabel("loss / first loss")
axes[0].legend()
plt.show()

# %% [markdown]
# ## A fusion in a plain Flax model
#
# `Tokens` are values `[B, N, D]` and a mask `[B, N]`. Here two vectors become one token each, one
# of them missing in a third of the rows; the label is the XOR of their signs.


# %%
class TwoInputs(nn.Module):
    """A layer for each input, a fusion of both, a classifier."""

    @nn.compact
    def __call__(self, a, b, b_present):
        here = {"a": jnp.ones(len(a), bool), "b": b_present}
        tokens = {
            name: Tokens.of(nn.relu(nn.Dense(16)(v))[:, None], here[name][:, None], name)
            for name, v in (("a", a), ("b", b))
        }
        fused = LowRankTensor(width=16)(tokens)  # <- the one line
        return nn.Dense(1)(fused.mean())[:, 0]


rng = np.random.default_rng(0)
signs = rng.choice([-1.0, 1.0], (1024, 2))
a, b = (0.3 * rng.standard_normal((1024, 4)).astype(np.float32) for _ in range(2))
a[:, 0] += signs[:, 0]
b[:, 0] += signs[:, 1]
label = (signs.prod(1) < 0).astype(np.float32)
present = rng.random(1024) < 2 / 3
b[~present] = 0

model = TwoInputs()
params = model.init(jax.random.key(0), a, b, present)
optimizer = optax.adam(1e-2)


@jax.jit
def step(params, state):
    def loss(params):
        logits = model.apply(params, a, b, present)
        return optax.sigmoid_binary_cross_entropy(logits, label).mean(), logits

    (value, logits), grads = jax.value_and_grad(loss, has_aux=True)(params)
    updates, state = optimizer.update(grads, state)
    right = (logits > 0) == (label > 0)
    metrics = value, jnp.mean(right, where=present), jnp.mean(right, where=~present)
    return optax.apply_updates(params, updates), state, metrics


state, course = optimizer.init(params), []
for _ in range(300):
    params, state, metrics = step(params, state)
    course.append(metrics)
_, both, alone = np.array(course).T
plt.figure(figsize=(6, 2.8))
plt.plot(both, label="rows with both inputs")
plt.plot(alone, label="rows with one: the label cannot be known")
plt.axhline(0.5, color="grey", linestyle=":")
plt.xlabel("step")
plt.ylabel("accuracy on the training rows")
plt.legend()
plt.show()
