"""Every kind of modality and target as something to see or hear: the parts of `show`'s page."""

from __future__ import annotations

import functools

import jax
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mtmm_jax.batch import Batch, Target
from mtmm_jax.data.pipeline.source import Source
from mtmm_jax.markup import COLOURS
from mtmm_jax.modalities import kind_of
from mtmm_jax.modalities.shown import Example
from mtmm_jax.text import as_text, read_tokenizer

_TILE, _ACROSS = 144, 6  # of the PNG sheet


def sheet(source: Source, batch: Batch) -> Image.Image | None:
    """The pictures of a batch side by side, a clip as a row of its frames; None without any."""
    name = next((n for n, m in source.spec.modalities.items() if kind_of(m).frames), None)
    if name is None and source.picture is None:
        return None
    tiles = []
    for i in range(len(batch["id"])):
        entry = batch["inputs"].get(name)
        if name is None:
            frames = source.picture(int(batch["id"][i]))[None]
        elif entry is None or not entry["present"][i]:
            frames = np.full((1, 8, 8, 3), 160, np.uint8)
        else:
            frames = kind_of(source.spec.modalities[name]).frames(entry["x"][i])
        tiles.append((frames, source.describe(int(batch["id"][i]))))
    most = max(len(frames) for frames, _ in tiles)
    side = _TILE if most == 1 else _TILE // 2
    columns = _ACROSS if most == 1 else 2
    width, height = most * side + 8, side + 24
    canvas = Image.new(
        "RGB", (columns * width + 8, -(-len(tiles) // columns) * height + 8), "white"
    )
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(11)
    for i, (frames, words) in enumerate(tiles):
        top, left = 8 + i // columns * height, 8 + i % columns * width
        for t, frame in enumerate(frames):
            canvas.paste(_enlarged(frame, side - 1), (left + t * side, top))
        draw.rectangle(
            (left - 1, top - 1, left + len(frames) * side - 1, top + side - 1), outline="#cccccc"
        )
        boxes = [] if most > 1 else _boxes(source, batch, i)
        for j, (_, at) in enumerate(boxes):
            y0, x0, y1, x1 = at * side
            edges = (left + x0, top + y0, left + x1 - 1, top + y1 - 1)
            draw.rectangle(edges, outline=COLOURS[j % len(COLOURS)])
        while words and draw.textlength(words, font) > width - 12:
            words = words[:-2].rstrip() + "…" if len(words) > 3 else ""
        draw.text((left, top + side + 3), words, fill="#333333", font=font)
    return canvas


def answer(source: Source, batch: Batch, i: int, name: str, target: Target) -> str:
    y = jax.tree.map(lambda leaf: leaf[i], batch["targets"][name]["y"])
    return target.traits.html(target, y, lambda ids: _words(source, name, ids))


def _words(source: Source, name: str, ids: np.ndarray) -> str:
    """Decoded by the tokenizer among the assets; the ids if there is none."""
    for key in (f"{name}.tokenizer.json", f"{name}_tokenizer.json", "tokenizer.json"):
        if key in source.assets:
            return as_text(read_tokenizer(source.assets[key]), ids)
    return as_text(None, ids)


def _boxes(source: Source, batch: Batch, i: int) -> list[tuple[str, np.ndarray]]:
    """Class and place (y0, x0, y1, x1 in 0..1) of what is marked in an example's picture."""
    found = []
    for name, target in source.spec.targets.items():
        entry, places = batch["targets"].get(name), target.traits.places
        if places is not None and entry is not None and entry["present"][i]:
            found += places(target, jax.tree.map(lambda leaf, i=i: leaf[i], entry["y"]))
    return found


def _enlarged(pixels: np.ndarray, side: int) -> Image.Image:
    """On a white square; small pictures keep their pixels."""
    image = Image.fromarray(pixels)
    scale = side / max(image.size)
    size = tuple(max(1, round(n * scale)) for n in image.size)
    image = image.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS)
    square = Image.new("RGB", (side, side), "white")
    square.paste(image)
    return square


def show_input(source: Source, batch: Batch, i: int, name: str) -> str:
    """An example's input as HTML, by the kind of the modality."""
    entry, modality = batch["inputs"][name], source.spec.modalities[name]
    mask = entry["mask"][i] if "mask" in entry else None
    decode = functools.partial(_words, source, name)
    boxes = _boxes(source, batch, i)
    return kind_of(modality).show(Example(name, modality, entry["x"][i], mask, boxes, decode))
