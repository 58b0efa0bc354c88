"""Retrieval: contrastive alignment of two modalities (CLIP, Radford et al. 2021,
arXiv:2103.00020)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mtmm_jax.batch import Spec
from mtmm_jax.devices import parallel
from mtmm_jax.layers import batch_rows
from mtmm_jax.registry import ConfigError
from mtmm_jax.tasks.metrics import monoids as metrics
from mtmm_jax.tasks.task import FUSED, Labels, Task, masked
from mtmm_jax.tasks.traits import Space, Traits


def retrieval(
    name: str,
    spec: Spec,
    *,
    make_head: Any,
    where: str,
    reads: Iterable[str] = (),
    head: str | Mapping[str, Any] = "embedding",
) -> Task:
    """Symmetric cross-entropy over the batch: -1/2 log softmax_j(s u_i . v_j)_i both ways.

    Negatives are gathered from all devices; rows that show the same thing (equal ids) are no
    negatives of each other. The loss does not add over microbatches: each sees fewer negatives.

    Paper: Radford et al. 2021, arXiv:2103.00020. Costs the batch squared, over all devices. Use it:
    for search, and to learn from pairs without labels. Not: with microbatches or batches of a few
    rows.

    Args:
        name, spec, make_head, where: given by the model.
        reads: two or more modalities, each with an embedding; neighbours in the list are aligned.
        head: an entry of `heads.HEADS`.
    """
    del spec
    if len(reads) < 2 or FUSED in reads:
        raise ConfigError(
            f"{where}.reads: {list(reads)}: retrieval needs two or more modalities by name"
        )
    pairs = tuple(pairwise(reads))

    def loss(prediction: dict[str, Any], labels: Labels, axis_name: str | None):
        weight = labels.weight
        rows = batch_rows(weight.shape[0], axis_name)
        ids = rows if labels.id is None else labels.id
        all_rows, all_ids = parallel.gather(rows, axis_name), parallel.gather(ids, axis_name)
        all_weight = parallel.gather(weight, axis_name)
        own = rows[:, None] == all_rows[None]
        rival = (ids[:, None] != all_ids[None]) & (all_weight > 0)[None]
        total = jnp.zeros(())
        for a, b in pairs:
            for one, other in ((a, b), (b, a)):
                u = prediction["vectors"][one]
                v = parallel.gather(prediction["vectors"][other], axis_name)
                logits = (prediction["scale"] * (u @ v.T)).astype(jnp.float32)
                log_p = jax.nn.log_softmax(
                    jnp.where(own | rival, logits, jnp.finfo(jnp.float32).min)
                )
                total += masked(-jnp.where(own, log_p, 0.0).sum(-1), weight)[0]
        return total / (2 * len(pairs)), weight.sum()

    def decode(prediction: dict[str, Any]) -> dict[str, Any]:
        vectors = prediction["vectors"]
        return {"similarity": {f"{a}-{b}": float(np.dot(vectors[a], vectors[b])) for a, b in pairs}}

    task_metrics = {
        f"{one}_to_{other}": metrics.retrieval_ranks(one, other)
        for a, b in pairs
        for one, other in ((a, b), (b, a))
    }

    def vectors(prediction: dict[str, Any]) -> dict[str, Any]:
        return {read: prediction["vectors"][read] for read in reads}

    def gallery(states: Sequence[Mapping[str, Any]]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        found = {}
        for key in task_metrics:
            parts = [(state[key]["candidate"], state[key]["id"]) for state in states]
            candidates, all_ids = (np.concatenate(part) for part in zip(*parts, strict=True))
            ids, rows = np.unique(all_ids, return_index=True)
            rows = rows[ids >= 0]  # the first row of each id stands for it
            found[key.split("_to_")[1]] = candidates[rows], all_ids[rows]
        return found

    module = make_head(head, where=f"{where}.head")
    constant = np.ones(module.size, np.float32) / module.size**0.5
    return Task(
        name=name,
        kind="retrieval",
        reads=tuple(reads),
        target=None,
        head=module,
        loss=loss,
        metrics=task_metrics,
        headline=f"{reads[0]}_to_{reads[1]}_recall@10",
        decode=decode,
        trivial={"vectors": dict.fromkeys(reads, constant), "scale": np.float32(1.0)},
        smaller=tuple(f"{key}_median_rank" for key in task_metrics),
        secondary=tuple(f"{key}_recall@10" for key in task_metrics),
        outputs=vectors,
        restore=lambda outputs: {"vectors": {read: outputs[read] for read in reads}},
        explained=None,
        space=Space(vectors, gallery),
        drawing=_queries,
        traits=Traits(compares_rows=True),
    )


def _queries(states: Mapping[str, Any], examples: int) -> dict[str, np.ndarray]:
    """Queries spread over the split, and the ids of their five best answers."""
    found = {}
    for key, state in states.items():
        answers = metrics.ranked(jax.device_get(state))
        chosen = np.linspace(0, len(answers["query_id"]) - 1, examples).astype(int)
        best = np.argsort(-answers["scores"][chosen], axis=1)[:, :5]
        found[f"query/{key}"] = answers["query_id"][chosen]
        found[f"answer/{key}"] = answers["candidate_id"][best]
    return found
