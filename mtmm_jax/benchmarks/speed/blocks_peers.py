"""Training steps of the encoders' twins in PyTorch: our parameters, fused Adam.

Needs `torch`, which the user installs; only `blocks --peers` imports it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import torch
from torch import nn

from mtmm_jax.benchmarks.speed.blocks_twins import TWINS as TWINS

# the end of one of our paths -> the end of theirs
_RENAMED = {
    r"\.input\.kernel$": ".weight_ih_l0",
    r"\.input\.bias$": ".bias_ih_l0",
    r"\.recurrent_bias$": ".bias_hh_l0",
    r"\.recurrent$": ".weight_hh_l0",
    r"\.(kernel|scale|embedding)$": ".weight",
    r"^forward\.": "ahead.",  # a module's `forward` is taken
}


def adopt(twin: nn.Module, params: Mapping[str, Any]) -> None:
    """Gives the twin our parameters; raises unless each has its place, and each place its own."""
    state = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        ours = jax.tree_util.keystr(path, simple=True, separator=".")
        value = np.asarray(leaf)
        if ours.endswith(("kernel", "recurrent")):
            last = value.ndim - 1  # [*sizes, in, out] -> [out, in, *sizes]
            value = value.transpose(last, last - 1, *range(last - 1))
        for pattern, theirs in _RENAMED.items():
            ours = re.sub(pattern, theirs, ours)
        state[ours] = torch.from_numpy(np.array(value))
    for query in [name for name in state if ".attention.query." in name]:
        parts = [state.pop(query.replace("query", part)) for part in ("query", "key", "value")]
        state[query.replace("query", "all")] = torch.cat(parts)
    known = dict(twin.named_parameters())
    if known.keys() != state.keys():
        raise RuntimeError(f"only in one of both: {sorted(known.keys() ^ state.keys())}")
    with torch.no_grad():
        for name, value in state.items():
            here, ours = ([n for n in x.shape if n > 1] for x in (known[name], value))
            if here != ours:
                raise RuntimeError(f"{name}: {here} here, {ours} in ours")
            known[name].copy_(value.reshape(known[name].shape))


def step(
    name: str, encoder: Any, variables: Any, x: np.ndarray, target: np.ndarray
) -> Callable[[], Any]:
    """A training step of a row's twin, which gives the loss; of the front end, its output."""
    twin = TWINS[name](encoder, x)
    inputs, wanted = torch.from_numpy(x), torch.from_numpy(target)
    if encoder is None:
        return lambda: twin(inputs).numpy()
    adopt(twin, variables["params"])
    twin.to(memory_format=torch.channels_last)
    if inputs.ndim == 4:
        inputs = inputs.permute(0, 3, 1, 2)  # a view: [B, H, W, C] is channels-last in memory
    optimizer = torch.optim.Adam(twin.parameters(), lr=1e-3, fused=True)

    def run() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = (twin(inputs).mean(1) - wanted).square().mean()
        loss.backward()
        optimizer.step()
        return loss.item()

    return run
