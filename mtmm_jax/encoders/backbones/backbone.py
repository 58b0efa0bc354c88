"""`Backbone`: a family of pretrained encoders; a row of `BACKBONES`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from mtmm_jax.batch import Modality
from mtmm_jax.encoders.backbones.mapping import PathRule


@dataclasses.dataclass(frozen=True)
class Backbone:
    """A family of pretrained encoders.

    Attributes:
        module: of `ENCODERS`; its fields take what `sizes` gives.
        sizes: `(config.json, where) -> ` fields of the module, as JSON.
        rules: saved names -> our paths.
        ignored: a regex of saved names that the module has no use for.
        tokenized: whether it reads texts, in the ids of the folder's tokenizer.
    """

    module: Any
    sizes: Callable[[Mapping[str, Any], str], dict[str, Any]]
    rules: tuple[PathRule, ...]
    ignored: str
    tokenized: bool = False

    def accepts(self, modality: Modality) -> bool:
        return self.module.accepts(modality)
