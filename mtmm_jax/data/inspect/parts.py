"""Every kind of modality and target as something to see or hear: the parts of `show`'s page."""

from __future__ import annotations

import io

import jax
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mtmm_jax.batch import Batch, Modality, Target
from mtmm_jax.data.pipeline.source import Source
from mtmm_jax.markup import CELLS, COLOURS, data_uri, escape, plot, png, sound, to_pixels
from mtmm_jax.text import decode, read_tokenizer

_TILE, _ACROSS = 144, 6  # of the PNG sheet


def sheet(source: Source, batch: Batch) -> Image.Image | None:
    """The pictures of a batch side by side, a clip as a row of its frames; None without any."""
    name = next(
        (n for n, m in source.spec.modalities.items() if m.kind in ("image", "video")), None
    )
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
            x = to_pixels(entry["x"][i])
            frames = x if x.ndim == 4 else x[None]
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
            return decode(read_tokenizer(source.assets[key]), np.asarray(ids)[None])[0]
    return "ids " + " ".join(map(str, np.asarray(ids).tolist()))


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


def _image(
    source: Source, batch: Batch, i: int, name: str, x: np.ndarray, mask: np.ndarray | None
) -> str:
    marks = "".join(
        f"<rect x='{x0:.4f}' y='{y0:.4f}' width='{x1 - x0:.4f}' height='{y1 - y0:.4f}' fill='none' "
        f"stroke='{COLOURS[j % len(COLOURS)]}' stroke-width='2' "
        f"vector-effect='non-scaling-stroke'><title>{escape(kind)}</title></rect>"
        for j, (kind, (y0, x0, y1, x1)) in enumerate(_boxes(source, batch, i))
    )
    over = f"<svg viewBox='0 0 1 1' preserveAspectRatio='none'>{marks}</svg>" if marks else ""
    return f"<div class=seen><img alt='{escape(name)}' src='{png(to_pixels(x))}'>{over}</div>"


def _video(
    source: Source, batch: Batch, i: int, name: str, x: np.ndarray, mask: np.ndarray | None
) -> str:
    frames = to_pixels(x if mask is None else x[mask])
    if not len(frames):
        return "<div class=absent>no frames</div>"
    rate = source.spec.modalities[name].rate or 4.0
    first, *others = (Image.fromarray(frame) for frame in frames)
    out = io.BytesIO()
    first.save(
        out,
        "WEBP",
        save_all=True,
        append_images=others,
        duration=round(1000 / rate),
        loop=0,
        lossless=max(first.size) <= 64,
        quality=85,
    )
    some = frames[np.unique(np.linspace(0, len(frames) - 1, min(8, len(frames))).astype(int))]
    strip = np.concatenate(some, axis=1)
    clip = data_uri(out.getvalue(), "image/webp")
    return (
        f"<div class=seen><img alt='{escape(name)}' src='{clip}'></div>"
        f"<div class='seen strip'><img alt='frames' src='{png(strip)}'></div>"
    )


def _audio(
    source: Source, batch: Batch, i: int, name: str, x: np.ndarray, mask: np.ndarray | None
) -> str:
    return sound(x if mask is None else x[mask], source.spec.modalities[name].rate)


def _text(
    source: Source, batch: Batch, i: int, name: str, x: np.ndarray, mask: np.ndarray | None
) -> str:
    ids = x if mask is None else x[mask]
    return f"<div title='{len(ids)} tokens'>{escape(_words(source, name, ids))}</div>"


def _table(
    source: Source, batch: Batch, i: int, name: str, x: np.ndarray, mask: np.ndarray | None
) -> str:
    names = _named(source.spec.modalities[name], len(x))
    real = np.isfinite(x) if mask is None else np.isfinite(x) & mask
    cells = [
        f"<div><span title='{escape(n)}'>{escape(n)}</span>{f'{v:.4g}' if ok else '–'}</div>"
        for n, v, ok in zip(names, x, real, strict=True)
    ]
    more = f"<div class=faint>and {len(cells) - CELLS} more</div>" if len(cells) > CELLS else ""
    return f"<div class=cells>{''.join(cells[:CELLS])}</div>{more}"


def _series(
    source: Source, batch: Batch, i: int, name: str, x: np.ndarray, mask: np.ndarray | None
) -> str:
    steps = x if mask is None else x[mask]
    return plot(steps, _named(source.spec.modalities[name], steps.shape[1]))


def _named(modality: Modality, count: int) -> tuple[str, ...]:
    return modality.names or tuple(str(c) for c in range(count))


RENDERERS = {
    "image": _image,
    "video": _video,
    "audio": _audio,
    "text": _text,
    "table": _table,
    "series": _series,
}
