"""The emoji as a `Source`: which example a row is, and how a batch of rows is put together."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from mtmm_jax.batch import Batch, Modality, Spec, Target
from mtmm_jax.data import audio, images
from mtmm_jax.data import augment as augmentation
from mtmm_jax.data.emoji.asset import RATE, STYLES
from mtmm_jax.data.emoji.prepared import Emoji, load
from mtmm_jax.data.source import SPLITS, Source
from mtmm_jax.data.text import PADDING, encode, read_tokenizer, train_tokenizer
from mtmm_jax.registry import ConfigError, choose

TEXTS = ("name", "name+keywords")
VOCABULARY = 2000
LATEST = 0.25  # seconds by which an utterance may start late in training
_NOISE_SECONDS = 30
_CHOICES = 2  # draws: which utterance, which wording
_SHORT = 1 / 3  # share of the training texts that are the name alone
# Mirroring would make these another emoji: letters, clocks, flags, "left" and "right".
_HANDED = {"arrow", "time", "alphanum", "keycap", "country-flag", "subdivision-flag", "punctuation"}


def emoji(
    *,
    text: str = "name",
    image_size: int = 32,
    styles: Sequence[str] = STYLES,
    seconds: float = 2.0,
    text_length: int = 16,
    augment: bool = True,
    seed: int = 0,
    data_dir: str | None = None,
) -> Source:
    """About 1,900 emoji as pictures, names and spoken names.

    A training example is a concept in one drawing style with one of its two utterances; in
    evaluation style i comes with utterance i. Splits are by concept.

    Args:
        text: "name", or "name+keywords" (what it is called, then what people search it by; a
            third of the training texts are the name alone, so that either is understood). The
            tokenizer knows the words of both.
        image_size: side of the pictures: float32 in -1..1, white background in evaluation.
        styles: which drawings, of "noto" and "twemoji".
        seconds: length of the audio, longer utterances are cut (1 in 250 at 2 s).
        text_length: tokens, longer texts are cut.
        augment: whether training batches are augmented.
        seed: of shuffling and augmentation.
        data_dir: where the prepared data are kept; `$MTMM_JAX_DATA` or `~/.cache/mtmm_jax`.
    """
    where = "data.emoji"
    choose(text, TEXTS, f"{where}.text")
    styles = (styles,) if isinstance(styles, str) else tuple(styles)
    for style in styles:
        choose(style, STYLES, f"{where}.styles", "style")
    if not styles or len(set(styles)) < len(styles):
        raise ConfigError(f"{where}.styles: {styles} must name one or more different styles")
    sizes = {"image_size": image_size, "seconds": seconds, "text_length": text_length}
    for name, value in sizes.items():
        if value <= 0:
            raise ConfigError(f"{where}.{name}: {value} is not positive")
    table = load(data_dir)
    full = _with_keywords(table)
    training = [t for t, split in zip(full, table.split, strict=True) if split == "train"]
    tokenizer_json = train_tokenizer(training, VOCABULARY)
    tokenizer = read_tokenizer(tokenizer_json)
    length = round(seconds * RATE)
    return Source(
        name="emoji",
        spec=_spec(table, styles, image_size, length, text_length, tokenizer.get_vocab_size()),
        rows={
            split: (
                np.flatnonzero(table.split == split)[:, None] * len(styles) + np.arange(len(styles))
            ).ravel()
            for split in SPLITS
        },
        compose=functools.partial(
            _compose,
            table,
            styles,
            image_size,
            length,
            encode(tokenizer, list(table.names), text_length),
            encode(tokenizer, full, text_length) if text == "name+keywords" else None,
            _flippable(table),
            _noise(max(_NOISE_SECONDS * RATE, 2 * length)),
        ),
        draws=_draws(text_length),
        assets={"tokenizer.json": tokenizer_json.encode()},
        describe=lambda id: table.names[id],
        picture=functools.partial(_picture, table),
        augment=augment,
        seed=seed,
    )


def _with_keywords(table: Emoji) -> list[str]:
    """Each name, then those of its keywords that are not in it already."""
    pairs = zip(table.names, table.keywords, strict=True)
    return [
        " ".join([name, *(word for word in words if word not in name)]) for name, words in pairs
    ]


def _spec(
    table: Emoji, styles: tuple[str, ...], size: int, length: int, tokens: int, vocabulary: int
) -> Spec:
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
            "text": Modality("text", (tokens,), "int32", vocabulary=vocabulary),
            "audio": Modality("audio", (length,), "float32", rate=float(RATE)),
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


def _noise(length: int) -> np.ndarray:
    """White noise to take stretches from: drawing it anew for each batch would cost 20 ms."""
    return np.random.default_rng(0).standard_normal(length, np.float32)


def _draws(text_length: int) -> int:
    return _CHOICES + augmentation.IMAGE_DRAWS + augmentation.AUDIO_DRAWS + text_length


def _compose(
    table: Emoji,
    styles: tuple[str, ...],
    size: int,
    length: int,
    named: np.ndarray,
    described: np.ndarray | None,
    flippable: np.ndarray,
    noise: np.ndarray,
    rows: np.ndarray,
    chance: np.ndarray | None,
) -> Batch:
    """Row r is concept r // S in style r % S."""
    concept, style = np.divmod(rows, len(styles))
    drawn = np.array([STYLES.index(name) for name in styles])[style]
    planes = np.stack([table.drawings[STYLES[s]][c] for c, s in zip(concept, drawn, strict=True)])
    full = named if described is None else described
    ids = full[concept]
    if chance is None:
        said = drawn
        spans = table.spans[concept, said]
        image = images.plain(planes, size)
        sound = audio.fit([table.speech[start:stop] for start, stop in spans], length)
    else:
        at = np.cumsum([_CHOICES, augmentation.IMAGE_DRAWS, augmentation.AUDIO_DRAWS])
        choices, for_image, for_audio, for_text = np.split(chance, at, axis=1)
        said = (choices[:, 0] < 0.5).astype(int)
        ids = np.where(choices[:, 1:] < _SHORT, named[concept], ids)
        spans = table.spans[concept, said]
        image = augmentation.image(planes, size, for_image, flippable[concept])
        latest = round(LATEST * RATE)
        sound = augmentation.audio(table.speech, spans, length, for_audio, noise, latest)
        ids = augmentation.text(ids, for_text)
    present = np.ones(len(rows), bool)
    labels = {
        "category": table.labels["category"][concept],
        "subcategory": table.labels["subcategory"][concept],
        "year": table.labels["year"][concept].astype(np.float32),
        "voice": table.voice[concept, said],
        "style": style.astype(np.int32),
    }
    return {
        "inputs": {
            "image": {"x": image, "present": present},
            "text": {"x": ids, "mask": ids != PADDING, "present": present},
            "audio": {"x": sound, "present": present},
        },
        "targets": {name: {"y": y, "present": present} for name, y in labels.items()},
        "id": concept.astype(np.int32),
    }


def _picture(table: Emoji, id: int, style: str = STYLES[0]) -> np.ndarray:
    """One drawing in its own size on white."""
    choose(style, STYLES, "picture", "style")
    planes = table.drawings[style][id][None]
    shown = (images.plain(planes, planes.shape[2])[0] + 1) * 127.5
    return np.clip(np.round(shown), 0, 255).astype(np.uint8)
