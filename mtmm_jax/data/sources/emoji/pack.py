"""Makes the packed emoji asset, once, from three npm packages and eSpeak NG.

    mkdir sources && cd sources
    npm install emoji-datasource-google@16.0.0 emoji-datasource-twitter@16.0.0 \
        emojibase-data@17.0.0
    pip install 'mtmm_jax[voices]'
    python -m mtmm_jax.data.sources.emoji.pack --npm sources

Two runs give the same bytes. Users never need it: the asset is part of the package.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import track

from mtmm_jax.data.sources.emoji import asset, card, names, ogg, speak, splits
from mtmm_jax.readers.images import pad_square
from mtmm_jax.registry import ConfigError

LIMIT = 12_000_000  # bytes
QUALITY = 90  # of WebP
COMPRESSION = 0.97  # of Opus: about 13 kbit/s
PAUSE = asset.RATE // 20  # silence between utterances, so that the codec does not mix them
FOLDERS = {"noto": "emoji-datasource-google/img/google/64"}
FOLDERS["twemoji"] = "emoji-datasource-twitter/img/twitter/64"
PAIRS = tuple(itertools.permutations(speak.VOICES, 2))


def drawing(path: Path) -> np.ndarray:
    """One PNG of any size and mode -> `[64, 64, 4]` uint8, transparent pixels black."""
    with Image.open(path) as image:
        square = pad_square(image.convert("RGBA"))
    if square.size != (asset.TILE, asset.TILE):
        square = square.resize((asset.TILE, asset.TILE), Image.Resampling.LANCZOS)
    pixels = np.array(square)
    pixels[pixels[..., 3] == 0] = 0
    return pixels


def draw(npm: Path, entries: Sequence[names.Entry], style: str) -> np.ndarray:
    folder = npm / "node_modules" / FOLDERS[style]
    return np.stack([drawing(folder / entry.image) for entry in entries])


def choose_voices(code: str) -> tuple[str, str]:
    """Two different voices by hash: spread evenly over concepts, blind to meaning and split."""
    return PAIRS[int(splits.order("voices " + code), 16) % len(PAIRS)]


def record(
    entries: Sequence[names.Entry], quiet: bool
) -> tuple[dict[str, np.ndarray], list[tuple]]:
    """Speaks every name twice. Returns a stream per voice and each concept's two spans in them."""
    streams: dict[str, list[np.ndarray]] = {voice: [] for voice in speak.VOICES}
    ends = dict.fromkeys(speak.VOICES, 0)
    spans = []
    for entry in track(entries, "speaking names", disable=quiet):
        pair = []
        for voice in choose_voices(entry.code):
            wave = speak.speak(entry.spoken, speak.VOICES[voice])
            streams[voice] += [wave, np.zeros(PAUSE, np.int16)]
            pair.append((ends[voice], ends[voice] + len(wave)))
            ends[voice] += len(wave) + PAUSE
        spans.append(tuple(pair))
    empty = np.zeros(PAUSE, np.int16)
    return {voice: np.concatenate([*parts, empty]) for voice, parts in streams.items()}, spans


def pack(npm: Path, out: Path, limit: int | None = None, quiet: bool = False) -> asset.Table:
    """Writes the asset into `out`; `limit` keeps that many emoji, evenly spaced, for trials."""
    entries = names.read_entries(npm)
    if limit is not None:
        entries = [entries[i] for i in np.linspace(0, len(entries) - 1, limit).astype(int)]
    out.mkdir(parents=True, exist_ok=True)
    drawings = {style: draw(npm, entries, style) for style in asset.STYLES}
    for style, tiles in drawings.items():
        path = out / f"{style}.webp"
        asset.to_sheet(tiles).save(path, "WEBP", quality=QUALITY)
    streams, spans = record(entries, quiet)
    for voice, wave in track(streams.items(), "encoding speech", disable=quiet):
        (out / f"{voice}.ogg").write_bytes(ogg.encode(wave, asset.RATE, COMPRESSION))
    written = [entry.spoken.lower() for entry in entries]
    groups = splits.group(written, list(drawings.values()))
    strata = [(entry.category, entry.subcategory) for entry in entries]
    parts = splits.assign([entry.code for entry in entries], strata, groups)
    concepts = tuple(
        asset.Concept(
            code=entry.code,
            name=name,
            keywords=entry.keywords,
            category=entry.category,
            subcategory=entry.subcategory,
            year=entry.year,
            split=part,
            voices=choose_voices(entry.code),
            spans=pair,
        )
        for entry, name, part, pair in zip(entries, written, parts, spans, strict=True)
    )
    made_with = {**names.PACKAGES, "espeakng-loader": version("espeakng-loader")}
    table = asset.Table(concepts, tuple(speak.VOICES), made_with)
    asset.write_table(out, table)
    if asset.size(out) > LIMIT:
        raise ConfigError(f"{out}: {asset.size(out):,} bytes; at most {LIMIT:,} may ship")
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m mtmm_jax.data.sources.emoji.pack",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--npm", type=Path, required=True, metavar="DIR", help="where `npm install` was run"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=asset.FOLDER,
        metavar="DIR",
        help="folder of the asset; the data card goes next to it (default: inside the package)",
    )
    parser.add_argument(
        "--limit", type=int, metavar="N", help="pack only N emoji, evenly spaced: for trials"
    )
    options = parser.parse_args(arguments)
    console = Console(stderr=True)
    try:
        table = pack(options.npm, options.out, options.limit, quiet=not console.is_terminal)
    except ConfigError as error:
        console.print(f"[red]{error}[/red]", soft_wrap=True)
        return 2
    card_path = options.out.parent / "CARD.md"
    card_path.write_text(card.render(table, asset.size(options.out)), encoding="utf-8")
    console.print(
        f"{len(table.concepts):,} concepts, {asset.size(options.out):,} bytes in {options.out}; "
        f"card: {card_path}"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
