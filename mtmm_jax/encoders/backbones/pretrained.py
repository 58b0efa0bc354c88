"""The encoder `pretrained`: any row of `BACKBONES`, from a folder of weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from mtmm_jax.batch import Modality
from mtmm_jax.encoders.backbones.backbone import Backbone
from mtmm_jax.encoders.backbones.bert import BERT
from mtmm_jax.encoders.backbones.folder import WeightsFolder
from mtmm_jax.encoders.backbones.mapping import convert
from mtmm_jax.encoders.encoder import Encoder
from mtmm_jax.ranges import Decay, Dtype, LayersOrZero, Share, Size, SizeOrZero, is_section
from mtmm_jax.registry import ConfigError, build, choose

BACKBONES: dict[str, Backbone] = {"bert": BERT}
"""`model_type` of a `config.json` -> the family."""

KIND = "pretrained"


def pretrained(
    width: Size,
    *,
    weights: str,
    tune: Share = 0.0,
    dropout: Decay = 0.1,
    word_dropout: Decay = 0.0,
    cut: LayersOrZero = 1,
    remat: bool | str = False,
    scan: bool = False,
    dtype: Dtype = "float32",
    projected: bool = True,
    sizes: Mapping[str, Any] | None = None,
    modality: str = "text",
    vocabulary: SizeOrZero = 0,
    where: str = "encoder",
) -> Encoder:
    """An encoder of the family, sizes and parameters of a folder of weights.

    The data gives its texts in the ids of the folder's `tokenizer.json`, whatever the source. Both
    are kept in the workdir, so that only training opens the folder. For LoRA: `tune` 0 and
    `config.lora = {"on": ["encoders/text/.*/(query|value)/kernel"], "freeze": False}`.

    Costs that of the folder's family, see `backbones`. Use it: below some 100,000 texts, always;
    frozen below some 1,000. Not: for texts in a language that the weights do not know.

    Args:
        width: of the tokens it gives, after a linear map that learns at the full rate.
        weights: a folder with `config.json`, `.safetensors` and `tokenizer.json`.
        tune: the learning rate of what the folder gives, as a share of the optimiser's: 0 keeps it
            as it is, .05 is typical.
        dropout, word_dropout, cut, remat, scan, dtype, projected: of the encoder, see
            `encoders.Bert`.
        sizes: what the folder's `config.json` says, with its `family`; read when the run begins.
    """
    del tune  # of the optimiser: `transfer.pretrained`
    found = dict(sizes or sizes_of(weights, where))
    family = choose(found.pop("family", None), BACKBONES, f"{where}.sizes.family", "family")
    known = found.get("vocabulary")
    if BACKBONES[family].tokenized and isinstance(known, int) and vocabulary > known:
        raise ConfigError(
            f"{where}.weights: {weights!r} has embeddings of {known} tokens, and {modality!r} has "
            f"ids of a tokenizer with {vocabulary}"
        )
    options = {
        "dropout": dropout,
        "word_dropout": word_dropout,
        "cut": cut,
        "remat": remat,
        "scan": scan,
        "dtype": dtype,
        "projected": projected,
    }
    table = {family: BACKBONES[family].module}
    section = {"kind": family, **found, **options}
    return build(table, section, where=where, width=width, modality=modality)


def _accepts(modality: Modality) -> bool:
    return any(row.accepts(modality) for row in BACKBONES.values())


pretrained.accepts = _accepts


def sizes_of(weights: str, where: str) -> dict[str, Any]:
    """`family` and the fields of its module, as a folder's `config.json` has them."""
    at = f"{where}.weights"
    folder = WeightsFolder.at(weights, at)
    family = folder.config.get("model_type")
    place = f"{at}: {folder.path}/config.json: model_type"
    family = choose(family, BACKBONES, place, "layout")
    return {"family": family, **BACKBONES[family].sizes(folder.config, f"{at}: {folder.path}")}


def check_weights(weights: str, where: str) -> None:
    """Raises a `ConfigError` where `{"kind": "pretrained", "weights": weights}` would not do."""
    folder = WeightsFolder.at(weights, where)
    family = choose(folder.config.get("model_type"), BACKBONES, f"{where}: model_type", "layout")
    BACKBONES[family].sizes(folder.config, f"{where}: {folder.path}")
    if BACKBONES[family].tokenized:
        folder.tokenizer(where)


def sections(encoders: Any) -> dict[str, dict[str, Any]]:
    """Modality -> section, of the encoders in `config.model.encoders` that have a folder."""
    entries = encoders.items() if is_section(encoders) else ()
    return {
        name: dict(section)
        for name, section in entries
        if is_section(section)
        and section.get("kind") == KIND
        and isinstance(section.get("weights"), str)
    }


def with_sizes(encoders: Any, where: str = "model.encoders") -> Any:
    """`config.model.encoders` completed by the folders' sizes, so that they are not needed
    again."""
    found = {}
    for name, section in sections(encoders).items():
        sizes = section.get("sizes") or sizes_of(section["weights"], f"{where}.{name}")
        found[name] = {**section, "sizes": sizes}
    return {**encoders, **found} if found else encoders


def check_kept(encoders: Any, where: str = "model.encoders") -> None:
    """Raises a `ConfigError` where a run's config would make its folders of weights be opened: one
    that mtmm_jax wrote has their sizes."""
    for name, section in sections(encoders).items():
        if not section.get("sizes"):
            raise ConfigError(
                f"{where}.{name}: has no sizes, which mtmm_jax writes when a run begins; the "
                f"folder {section['weights']!r} is not opened for a finished run"
            )


def tokenizers(encoders: Any, where: str = "model.encoders") -> dict[str, str]:
    """Modality -> the `tokenizer.json` in whose ids its encoder reads texts."""
    found = {}
    for name, section in sections(encoders).items():
        at = f"{where}.{name}.weights"
        folder = WeightsFolder.at(section["weights"], at)
        row = BACKBONES.get(str(folder.config.get("model_type")))
        if row is not None and row.tokenized:
            found[name] = folder.tokenizer(at)
    return found


def variables_of(weights: str, encoder: Encoder, where: str) -> dict[str, Any]:
    """The folder's parameters under the paths of an encoder that `pretrained` made.

    Raises:
        ConfigError: naming every tensor that is missing, left over or of another shape.
    """
    folder = WeightsFolder.at(weights, where)
    family = choose(folder.config.get("model_type"), BACKBONES, f"{where}: model_type", "layout")
    row, plain = BACKBONES[family], encoder.clone(projected=False, parent=None, name=None)
    entry = {"x": np.zeros((1, 1), np.int32), "present": np.ones(1, bool)}
    wanted = jax.eval_shape(plain.init, jax.random.key(0), entry)
    return convert(folder.tensors(where), row.rules, wanted, f"{where}: {folder.path}", row.ignored)


def load(weights: str, where: str = "backbones.load") -> tuple[Encoder, dict[str, Any]]:
    """`(module, variables)`: `module.apply(variables, {"x": ids, "mask": mask, "present": ...})`
    gives the tokens of the original's last layer.

    >>> model, variables = load("minilm")  # doctest: +SKIP
    """
    module = pretrained(1, weights=weights, projected=False, dropout=0.0, where=where)
    return module, variables_of(weights, module, where)
