"""The test rows that a model did worst and best, with their inputs, as a section of the report."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from mtmm_jax.batch import Modality, Spec
from mtmm_jax.evaluation.extremes import SIGNS
from mtmm_jax.inference.prediction import kept_tokenizer
from mtmm_jax.markup import cards, escape
from mtmm_jax.modalities import kind_of
from mtmm_jax.modalities.shown import Example
from mtmm_jax.store.workdir import Workdir
from mtmm_jax.tasks.task import Task
from mtmm_jax.text import as_text

STYLE = cards(230) + ".example { border: 1px solid var(--line); border-radius: 8px }"
NOTE = (
    "By the loss of each row of the test split: where the model was most wrong, or wrong and sure "
    "of it, and where it was most right. A label that looks wrong here often is wrong in the table."
)


def section(
    workdir: Workdir, tasks: Mapping[str, Task], spec: Spec, arrays: Mapping[str, Any]
) -> str:
    """HTML; empty where the run kept no such rows."""
    tokenizers = functools.cache(lambda name: kept_tokenizer(workdir, name))
    parts = []
    for name, task in tasks.items():
        for end in SIGNS:
            ids = arrays.get(f"{end}/{name}/id", ())
            if not len(ids):
                continue
            shown = [
                _card(task, spec, arrays, f"{end}/{name}", i, tokenizers) for i in range(len(ids))
            ]
            head = escape(f"{name}: the {end} of the test split")
            parts.append(f"<h3>{head}</h3><div class=examples>{''.join(shown)}</div>")
    return f"<p>{escape(NOTE)}</p>{''.join(parts)}" if parts else ""


def _card(
    task: Task, spec: Spec, arrays: Mapping[str, Any], place: str, i: int, tokenizers: Any
) -> str:
    row = int(arrays[f"{place}/id"][i])
    inputs = []
    for name, modality in spec.modalities.items():
        x, mask = (arrays.get(f"row/{row}/{name}/{key}") for key in ("x", "mask"))
        shown = "<div class=absent>absent</div>"
        if x is not None:
            shown = input_html(name, modality, x, mask, tokenizers(name))
        label = f"<div class=label><span>{escape(name)}</span></div>"
        inputs.append(f"<div class=input>{label}{shown}</div>")
    target = spec.targets[task.target]
    label = target.traits.html(
        target, arrays[f"{place}/y"][i], lambda ids: as_text(tokenizers(task.target), ids)
    )
    predicted = json.loads(str(arrays[f"{place}/predicted"][i]))
    loss = float(arrays[f"{place}/loss"][i])
    title = str(arrays.get(f"row/{row}/name", row))
    return (
        f"<div class=example><h3>{escape(title)}</h3>{''.join(inputs)}"
        f"<dl><dt>predicted</dt><dd>{escape(_readable(predicted))}</dd><dt>label</dt>"
        f"<dd>{label}</dd><dt>loss</dt><dd>{loss:.3g}</dd></dl></div>"
    )


def input_html(
    name: str, modality: Modality, x: np.ndarray, mask: np.ndarray | None, tokenizer: Any
) -> str:
    """One input of one row, as the model sees it; `tokenizer` None where the run keeps none."""
    example = Example(name, modality, x, mask, (), functools.partial(as_text, tokenizer))
    return kind_of(modality).show(example)


def _readable(answer: Mapping[str, Any]) -> str:
    """The prediction, and how sure the model was."""
    value = answer.get("prediction")
    if isinstance(value, list):
        value = ", ".join(map(str, value)) or "none"
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    if answer.get("probability") is not None:
        text += f" ({answer['probability']:.0%})"
    elif answer.get("std") is not None:
        text += f" ± {answer['std']:.2g}"
    return text
