"""`config.data` -> a source: an entry of the table, and the options that every source takes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from mtmm_jax import registry
from mtmm_jax.data.pipeline.bucketing import Edges, bucket
from mtmm_jax.data.pipeline.labels import HeldOut, LabelledShare, Shares, held_out, hide, semi
from mtmm_jax.data.pipeline.mixing import mixing as build_mixing
from mtmm_jax.data.pipeline.mixup import Concentration, mixup
from mtmm_jax.data.pipeline.source import Source
from mtmm_jax.data.sources.digits import digits
from mtmm_jax.data.sources.emoji import emoji
from mtmm_jax.data.sources.emoji.clips import emoji_clips
from mtmm_jax.data.sources.emoji.scenes import emoji_scenes
from mtmm_jax.data.sources.films import films
from mtmm_jax.data.sources.generator import generator
from mtmm_jax.data.sources.manifest import manifest, video_folder
from mtmm_jax.data.sources.mixture import keep, mix, rename
from mtmm_jax.data.sources.scenarios import scenarios
from mtmm_jax.data.sources.sharded import packed
from mtmm_jax.data.sources.tfds.source import tfds
from mtmm_jax.data.sources.vowels import vowels
from mtmm_jax.ranges import Entry, Natural, Threads
from mtmm_jax.registry import ConfigError, check, checked
from mtmm_jax.text import Tokenizers, read_tokenizer, tokenizer_of

OF_THE_WHOLE = ("bucket", "workers", "in_step")


@functools.partial(checked, where="data")
def mixture(
    *,
    sources: Mapping[str, Entry],
    mixing: Entry = "proportional",
    origin: bool = False,
    trained: Sequence[str] | None = None,
    held: Sequence[str] | None = None,
    seed: Natural = 0,
    where: str = "data",
    tokenizers: Tokenizers = None,
) -> Source:
    """Several sources as one.

    Costs that of its sources. Use it: for tasks whose labels stand in different data, and for
    domain adaptation. Not: for one table with missing labels; `manifest` reads that.

    Args:
        sources: name -> the section of each, as it would stand under `data`.
        mixing: an entry of `MIXINGS`: how they share the training batches.
        origin: whether there is a target `origin` that names the source of each row, for domain
            adaptation (`tasks.terms.domains`).
        trained: the sources whose training rows are drawn; all by default.
        held: the sources whose validation and test rows count; all by default.
        seed: of shuffling and augmentation, unless training has its own.
        where, tokenizers: given by `build`.
    """
    for name, config in sources.items():
        for key in OF_THE_WHOLE if isinstance(config, Mapping) else ():
            if key in config:
                raise ConfigError(
                    f"{where}.sources.{name}.{key}: is about whole batches, which sources share; "
                    f"give it to the mixture, {where}.{key}"
                )
    built = {
        name: build(config, f"{where}.sources.{name}", tokenizers)
        for name, config in sources.items()
    }
    how = build_mixing(mixing, f"{where}.mixing")
    whole = mix(built, how, where, origin=origin, trained=trained, held=held)
    return dataclasses.replace(whole, seed=seed)


SOURCES: dict[str, Callable[..., Source]] = {
    "emoji": emoji,
    "emoji_scenes": emoji_scenes,
    "emoji_clips": emoji_clips,
    "films": films,
    "digits": digits,
    "vowels": vowels,
    "generator": generator,
    "scenarios": scenarios,
    "manifest": manifest,
    "video_folder": video_folder,
    "packed": packed,
    "tfds": tfds,
    "mixture": mixture,
}


class Option(NamedTuple):
    """An option of every source: its type, and `(source, value, where) -> source`."""

    wants: Any
    apply: Callable[[Source, Any, str], Source]


# In the order in which they are applied.
OPTIONS: dict[str, Option] = {
    "keep": Option(str | Sequence[str], keep),
    "rename": Option(Mapping[str, str], lambda source, names, where: rename(source, names)),
    "held_out": Option(HeldOut, lambda source, value, where: held_out(source, value, where=where)),
    "hide": Option(Shares, lambda source, shares, where: hide(source, shares, where=where)),
    "semi": Option(
        Mapping[str, Any], lambda source, options, where: semi(source, **options, where=where)
    ),
    "mixup": Option(Concentration, mixup),
    "bucket": Option(Edges, lambda source, edges, where: bucket(source, edges, where=where)),
    "workers": Option(
        Threads, lambda source, count, where: dataclasses.replace(source, workers=count)
    ),
}
"""Options that stand next to those of the source's own:

keep: only these modalities, `[name]`.
rename: modalities and targets, `{old: new}`.
held_out: keep all rows of some classes out of training, `{target: [classes] or how many}`.
hide: keep only a share of the training labels, `{target: share}`.
semi: a fixed share of labelled rows in every batch, `{"target": name, "labelled": share}`;
    1: those rows alone.
bucket: trim texts and series to one of a few lengths, `{modality: [lengths]}`.
mixup: blend neighbouring examples and their labels, the parameter of the Beta distribution.
workers: threads that make batches.

`in_step` (modality -> rows of `augment_jit.AUGMENTATIONS`) is left to the training step.
"""


def in_step(config: Any) -> Mapping[str, str]:
    """The augmentations that the training step applies on the device, by modality."""
    found = None if isinstance(config, str) else config.get("in_step")
    return check(found, Mapping[str, str] | None, "data.in_step") or {}


def build(config: Any, where: str = "data", tokenizers: Tokenizers = None) -> Source:
    """A source by name or section; `config` may hold any of `OPTIONS` besides.

    Args:
        config: of `config.data`.
        where: the place in the config.
        tokenizers: modality -> the `tokenizer.json` in whose ids its texts are, such as that of
            pretrained weights; the others have one that is trained on the train split.
    """
    section = registry.entry_of(config, where)
    in_step(section)
    section.pop("in_step", None)
    options = {key: section.pop(key) for key in OPTIONS if key in section}
    for key, value in options.items():
        check(value, OPTIONS[key].wants, f"{where}.{key}")
    if "semi" in options:
        like = "{'target': 'name', 'labelled': 0.5}"
        registry.section_of(options["semi"], LabelledShare, f"{where}.semi", like)
    new_names = {new: old for old, new in options.get("rename", {}).items()}
    own = {new_names.get(name, name): text for name, text in (tokenizers or {}).items()}
    source = registry.build(SOURCES, section, where=where, tokenizers=own)
    for key, value in options.items():
        source = OPTIONS[key].apply(source, value, f"{where}.{key}")
    _check_tokenizers(source, tokenizers or {}, where)
    return source


def _check_tokenizers(source: Source, tokenizers: Mapping[str, str], where: str) -> None:
    for name, text in tokenizers.items():
        modality = source.spec.modalities.get(name)
        if modality is None:
            continue  # of another source, or named by an error of the model
        kept = tokenizer_of(source.assets, name)
        if kept is None or read_tokenizer(kept).get_vocab() != read_tokenizer(text).get_vocab():
            raise ConfigError(
                f"{where}: {name!r} of {source.name} is {modality.kind} in its own tokens, which "
                "no other tokenizer makes; choose an encoder that learns from scratch, such as "
                "text_transformer; where it is a pack, pack again with --config of this config"
            )
