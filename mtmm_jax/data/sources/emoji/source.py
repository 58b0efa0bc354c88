"""The emoji as a `Source`: which example a row is, and how a batch of rows is put together."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from mtmm_jax.batch import Batch, Modality, Spec, Target
from mtmm_jax.data.pipeline.source import SPLITS, Source
from mtmm_jax.data.sources.emoji.asset import RATE, STYLES
from mtmm_jax.data.sources.emoji.prepared import Emoji, load
from mtmm_jax.data.sources.emoji.spelling import speller, transcripts
from mtmm_jax.data.transforms import augment as augmentation
from mtmm_jax.encoders.backbones import tokenizer_at
from mtmm_jax.ranges import Natural, ShortText, Size, Utterance
from mtmm_jax.readers import audio, images
from mtmm_jax.registry import ConfigError, checked, choose
from mtmm_jax.text import (
    PADDING,
    UNKNOWN,
    Tokenizers,
    encode,
    padding_id,
    read_tokenizer,
    train_tokenizer,
    unknown_id,
)

TEXTS = ("name", "name+keywords")
UNITS = ("pieces", "characters")
VOCABULARY = 2000
LATEST = 0.25  # seconds by which an utterance may start late in training
_NOISE_SECONDS = 30
_CHOICES = 2  # draws: which utterance, which wording
_SHORT = 1 / 3  # share of the training texts that are the name alone
# Mirroring would make these another emoji: letters, clocks, flags, "left" and "right".
_HANDED = {"arrow", "time", "alphanum", "keycap", "country-flag", "subdivision-flag", "punctuation"}


@functools.partial(checked, where="data.emoji")
def emoji(
    *,
    text: str = "name",
    units: str = "pieces",
    image_size: Size = 32,
    styles: str | Sequence[str] = STYLES,
    seconds: Utterance = 2.0,
    text_length: ShortText = 16,
    tokenizer: str | None = None,
    speech: bool = False,
    augment: bool = True,
    seed: Natural = 0,
    data_dir: str | None = None,
    tokenizers: Tokenizers = None,
) -> Source:
    """About 1,900 emoji as pictures, names and spoken names.

    A training example is a concept in one drawing style with one of its two utterances; in
    evaluation style i comes with utterance i. Splits are by concept.

    Costs no download: 11 MB in the package. Use it: to try every part on real pictures, texts and
    speech. Not: to compare with published numbers.

    Args:
        text: "name", or "name+keywords" (what it is called, then what people search it by; a
            third of the training texts are the name alone, so that either is understood). The
            tokenizer knows the words of both.
        units: what a token of the text is: "pieces" of words, a tenth of them made unknown in
            training, or "characters", which stay as they are: the longest name has 48.
        image_size: side of the pictures: float32 in -1..1, white background in evaluation.
        styles: which drawings, of "noto" and "twemoji".
        seconds: length of the audio, longer utterances are cut (1 in 250 at 2 s).
        text_length: tokens, longer texts are cut.
        tokenizer: a `tokenizer.json`, or a folder with one, such as that of pretrained weights;
            None: trained on the train split.
        speech: whether the spoken name, as it was recorded, is a label too; it makes batches large.
        augment: whether training batches are augmented.
        seed: of shuffling and augmentation.
        data_dir: where the prepared data are kept; `$MTMM_JAX_DATA` or `~/.cache/mtmm_jax`.
        tokenizers: given by `data.build`; that of "text" comes before `tokenizer`.
    """
    where = "data.emoji"
    choose(text, TEXTS, f"{where}.text")
    choose(units, UNITS, f"{where}.units")
    styles = check_styles(styles, where)
    table = load(data_dir)
    if tokenizer is not None and units != "pieces":
        raise ConfigError(f"{where}.units: {units!r} has a tokenizer of its own; choices: pieces")
    own = (tokenizers or {}).get("text")
    if own is None and tokenizer is not None:
        own = tokenizer_at(tokenizer, f"{where}.tokenizer")
    telling = Telling.of(table, text, seconds, text_length, units, own)
    spelt, transcript = transcripts(table.names, table.split)
    spec = _spec(table, styles, image_size, telling)
    spec.targets["transcript"] = transcript
    if speech:
        spec.targets["speech"] = Target(
            "wave", length=telling.length, rate=float(RATE), made_from=("audio",)
        )
    return Source(
        name="emoji",
        spec=spec,
        rows=concept_rows(table, styles),
        compose=functools.partial(
            _compose, telling, styles, image_size, _flippable(table), spelt, speech
        ),
        draws=telling.draws + augmentation.IMAGE_DRAWS,
        assets=telling.assets,
        describe=lambda id: table.names[id],
        picture=functools.partial(picture, table),
        augment=augment,
        seed=seed,
    )


def check_styles(styles: str | Sequence[str], where: str) -> tuple[str, ...]:
    """One or more different drawing styles."""
    styles = (styles,) if isinstance(styles, str) else tuple(styles)
    for style in styles:
        choose(style, STYLES, f"{where}.styles", "style")
    if not styles or len(set(styles)) < len(styles):
        raise ConfigError(f"{where}.styles: {styles} must name one or more different styles")
    return styles


def concept_rows(table: Emoji, styles: Sequence[str]) -> dict[str, np.ndarray]:
    """Row r is concept r // S in style r % S."""
    number, every = len(styles), np.arange(len(styles))
    return {
        split: (np.flatnonzero(table.split == split)[:, None] * number + every).ravel()
        for split in SPLITS
    }


def draw(
    table: Emoji, styles: Sequence[str], rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The concepts of rows, their styles (places in `styles`), planes `[B, 4, 64, 64]`."""
    concept, style = np.divmod(rows, len(styles))
    planes = [table.drawings[styles[s]][c] for c, s in zip(concept, style, strict=True)]
    return concept, style, np.stack(planes)


@dataclasses.dataclass(frozen=True)
class Telling:
    """Concepts in words and in speech: what sources of emoji share besides the drawings.

    Attributes:
        length: samples of the audio.
        named: `[N, tokens]` ids of the names.
        described: `[N, tokens]` ids of names and keywords; None if only names are used.
        noise: white noise to take stretches from: drawing it anew for each batch would cost 20 ms.
        special: the ids that pad and that stand for what is unknown.
    """

    table: Emoji
    length: int
    tokenizer_json: str
    vocabulary: int
    named: np.ndarray
    described: np.ndarray | None
    noise: np.ndarray
    units: str = "pieces"
    special: tuple[int, int] = (PADDING, UNKNOWN)

    @classmethod
    def of(
        cls,
        table: Emoji,
        text: str,
        seconds: float,
        tokens: int,
        units: str = "pieces",
        own: str | None = None,
    ) -> Telling:
        full = _with_keywords(table)
        spelt = units == "characters"
        phrases = table.names if spelt and text == "name" else full
        training = [t for t, split in zip(phrases, table.split, strict=True) if split == "train"]
        if own is None:
            own = speller(training) if spelt else train_tokenizer(training, VOCABULARY)
        tokenizer = read_tokenizer(own)
        length = round(seconds * RATE)
        stretch = max(_NOISE_SECONDS * RATE, 2 * length)
        return cls(
            table,
            length,
            own,
            tokenizer.get_vocab_size(),
            encode(tokenizer, list(table.names), tokens),
            encode(tokenizer, full, tokens) if text == "name+keywords" else None,
            np.random.default_rng(0).standard_normal(stretch, np.float32),
            units,
            (padding_id(tokenizer), unknown_id(tokenizer)),
        )

    @property
    def draws(self) -> int:
        return _CHOICES + augmentation.AUDIO_DRAWS + self.named.shape[1]

    @property
    def assets(self) -> dict[str, bytes]:
        return {"tokenizer.json": self.tokenizer_json.encode()}

    @property
    def modalities(self) -> dict[str, Modality]:
        tokens = (self.named.shape[1],)
        return {
            "text": Modality("text", tokens, "int32", vocabulary=self.vocabulary),
            "audio": Modality("audio", (self.length,), "float32", rate=float(RATE)),
        }

    def __call__(
        self, concept: np.ndarray, utterance: np.ndarray, chance: np.ndarray | None
    ) -> tuple[dict[str, Any], np.ndarray]:
        """The inputs `text` and `audio`, and which of its utterances speaks each concept.

        Without `chance` that is the given one.
        """
        full = self.named if self.described is None else self.described
        ids = full[concept]
        if chance is None:
            spoken = utterance
            spans = self.table.spans[concept, spoken]
            sound = audio.fit([self.table.speech[a:b] for a, b in spans], self.length)
        else:
            at = np.cumsum([_CHOICES, augmentation.AUDIO_DRAWS])
            choices, for_audio, for_text = np.split(chance, at, axis=1)
            spoken = (choices[:, 0] < 0.5).astype(int)
            ids = np.where(choices[:, 1:] < _SHORT, self.named[concept], ids)
            if self.units == "pieces":
                padding, unknown = self.special
                ids = augmentation.text(ids, for_text, unknown=unknown, padding=padding)
            spans, latest = self.table.spans[concept, spoken], round(LATEST * RATE)
            sound = augmentation.audio(
                self.table.speech, spans, self.length, for_audio, self.noise, latest
            )
        present = np.ones(len(concept), bool)
        inputs = {
            "text": {"x": ids, "mask": ids != self.special[0], "present": present},
            "audio": {"x": sound, "present": present},
        }
        return inputs, spoken


def _with_keywords(table: Emoji) -> list[str]:
    """Each name, then those of its keywords that are not in it already."""
    pairs = zip(table.names, table.keywords, strict=True)
    return [
        " ".join([name, *(word for word in words if word not in name)]) for name, words in pairs
    ]


def _spec(table: Emoji, styles: tuple[str, ...], size: int, telling: Telling) -> Spec:
    train = table.split == "train"
    years = table.labels["year"][train]
    seen = {
        "category": table.labels["category"][train],
        "subcategory": table.labels["subcategory"][train],
        "voice": table.voice[train].ravel(),
        "style": np.arange(len(styles)),
    }
    targets = {}
    for name, classes in {**table.classes, "style": styles}.items():
        counts = np.bincount(seen[name], minlength=len(classes))
        frequencies = tuple((counts / counts.sum()).tolist())
        targets[name] = Target("class", classes=tuple(classes), frequencies=frequencies)
    targets["year"] = Target("number", mean=float(years.mean()), std=float(years.std()))
    return Spec(
        modalities={
            "image": Modality("image", (size, size, 3), "float32"),
            **telling.modalities,
        },
        targets=targets,
    )


def _flippable(table: Emoji) -> np.ndarray:
    """`[N]` bool: whether the mirrored drawing still is what its name says."""
    names = table.classes["subcategory"]
    return np.array(
        [
            names[kind] not in _HANDED
            and not {"left", "right"} & set(name.replace("-", " ").split())
            for name, kind in zip(table.names, table.labels["subcategory"], strict=True)
        ]
    )


def _compose(
    telling: Telling,
    styles: tuple[str, ...],
    size: int,
    flippable: np.ndarray,
    spelt: np.ndarray,
    speech: bool,
    rows: np.ndarray,
    chance: np.ndarray | None,
) -> Batch:
    table = telling.table
    concept, style, planes = draw(table, styles, rows)
    if chance is None:
        image, rest = images.plain(planes, size), None
    else:
        for_image = slice(_CHOICES, _CHOICES + augmentation.IMAGE_DRAWS)
        image = augmentation.image(planes, size, chance[:, for_image], flippable[concept])
        rest = np.delete(chance, for_image, axis=1)
    text, spoken = telling(concept, np.array([STYLES.index(s) for s in styles])[style], rest)
    present = np.ones(len(rows), bool)
    labels = {
        "category": table.labels["category"][concept],
        "subcategory": table.labels["subcategory"][concept],
        "year": table.labels["year"][concept].astype(np.float32),
        "voice": table.voice[concept, spoken],
        "style": style.astype(np.int32),
        "transcript": spelt[concept],
    }
    if speech:
        spans = table.spans[concept, spoken]
        labels["speech"] = audio.fit([table.speech[a:b] for a, b in spans], telling.length)
    return {
        "inputs": {"image": {"x": image, "present": present}, **text},
        "targets": {name: {"y": y, "present": present} for name, y in labels.items()},
        "id": concept.astype(np.int32),
    }


def picture(table: Emoji, id: int, style: str = STYLES[0]) -> np.ndarray:
    """One drawing in its own size on white."""
    choose(style, STYLES, "picture", "style")
    planes = table.drawings[style][id][None]
    shown = (images.plain(planes, planes.shape[2])[0] + 1) * 127.5
    return np.clip(np.round(shown), 0, 255).astype(np.uint8)
