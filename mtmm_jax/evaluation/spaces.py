"""Vectors of a retrieval task's common space: of the rows of a split, and of texts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np

from mtmm_jax.batch import Batch
from mtmm_jax.data.pipeline.source import Source
from mtmm_jax.evaluation.split import restrict
from mtmm_jax.model import Model
from mtmm_jax.registry import ConfigError
from mtmm_jax.text import encode_with_mask, read_tokenizer, tokenizer_of

Array = np.ndarray
WHERE = "--zero_shot"


def embedder(model: Model, task: str) -> Callable[[Any, Any], dict[str, jax.Array]]:
    """`(variables, inputs) -> {read: [B, D]}`, compiled."""
    vectors = model.tasks[task].space.vectors
    return jax.jit(lambda variables, inputs: vectors(model(variables, inputs)[0][task]))


def embedded(
    embed: Callable[[Any, Any], Any],
    variables: Any,
    batches: Iterable[Batch],
    read: str,
    label: str,
) -> tuple[Array, Array]:
    """`[N, D]` and `[N]`: the rows that have both the modality and the label."""
    vectors, labels = [], []
    for batch in batches:
        outputs = embed(variables, restrict(batch, [read])["inputs"])[read]
        entry = batch["targets"][label]
        rows = batch["inputs"][read]["present"] & entry["present"] & (batch["weight"] > 0)
        vectors.append(np.asarray(outputs, np.float32)[rows])
        labels.append(np.asarray(entry["y"])[rows])
    return np.concatenate(vectors), np.concatenate(labels)


def named(
    embed: Callable[[Any, Any], Any],
    variables: Any,
    source: Source,
    read: str,
    texts: Sequence[str],
) -> Array:
    """`[C, D]` of texts, as the data would give them, with everything else absent."""
    kept = tokenizer_of(source.assets, read)
    if kept is None:
        raise ConfigError(
            f"{WHERE}: the data {source.name} keep no tokenizer, so names have no ids"
        )
    batch = next(iter(source.batches("test", len(texts))))
    entry = batch["inputs"][read]
    ids, mask = encode_with_mask(read_tokenizer(kept), list(texts), entry["x"].shape[1])
    here = np.ones(len(texts), bool)
    words = {**entry, "x": ids.astype(np.int32), "mask": mask, "present": here}
    restricted = restrict({**batch, "inputs": {**batch["inputs"], read: words}}, [read])
    return np.asarray(embed(variables, restricted["inputs"])[read], np.float32)


def space_of(model: Model, modality: str | None = None, where: str = WHERE) -> tuple[str, str, str]:
    """`(task, modality, text)`: a retrieval task that puts a modality and a text into one space."""
    words = {name for name, entry in model.spec.modalities.items() if entry.is_a("text")}
    for name, task in model.tasks.items():
        texts = [read for read in task.reads if read in words]
        others = [read for read in task.reads if read not in texts]
        if modality is not None:
            others = [read for read in others if read == modality]
        if task.space is not None and texts and others:
            return name, others[0], texts[0]
    what = "another modality" if modality is None else repr(modality)
    raise ConfigError(f"{where}: no retrieval task reads a text and {what}")
