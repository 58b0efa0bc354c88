"""Every kind of modality and target as something to see or hear: the parts of `show`'s page."""

from __future__ import annotations

import base64
import html
import io

import jax
import numpy as np
import soundfile
from PIL import Image, ImageColor, ImageDraw, ImageFont

from mtmm_jax.batch import Batch, Modality, Target
from mtmm_jax.data.pipeline.source import Source
from mtmm_jax.text import decode, read_tokenizer

_CELLS = 24  # columns of a table, lines of a series
_COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#888888")
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
            x = _pixels(entry["x"][i])
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
            draw.rectangle(edges, outline=_COLOURS[j % len(_COLOURS)])
        while words and draw.textlength(words, font) > width - 12:
            words = words[:-2].rstrip() + "…" if len(words) > 3 else ""
        draw.text((left, top + side + 3), words, fill="#333333", font=font)
    return canvas


def say(text: object) -> str:
    return html.escape(str(text))


def answer(source: Source, batch: Batch, i: int, name: str, target: Target) -> str:
    if target.kind == "boxes":
        marks = [_mark(kind, j) for j, (kind, _) in enumerate(_boxes(source, batch, i, name))]
        return " ".join(marks) or "none"
    y = jax.tree.map(lambda leaf: leaf[i], batch["targets"][name]["y"])
    if target.kind == "number":
        return f"{float(y):.5g}"
    if target.kind == "tokens":
        return say(_spelt(target, y) if target.classes else _words(source, name, y[y != 0]))
    if target.kind == "wave":
        return _sound(y, target.rate)
    if target.kind == "mask":
        return _mask(target, y)
    if target.kind == "path":
        points = np.asarray(y["points"])[y["valid"]]
        return _plot(points) if points.size else "empty"
    if target.kind == "labels":
        chips = [f"<span class=chip>{say(target.classes[c])}</span>" for c in np.flatnonzero(y)]
        return "".join(chips) or "none of them"
    if np.ndim(y):  # a probability per class
        best = [c for c in np.argsort(-y)[:3] if y[c] > 0]
        return say(", ".join(f"{target.classes[c]} {y[c]:.0%}" for c in best))
    return say(target.classes[int(y)])


def _spelt(target: Target, ids: np.ndarray) -> str:
    """Characters or pieces of words joined, 0 left out; a low block begins a word."""
    text = "".join(target.classes[i] for i in ids if i)
    return text.replace("\N{LOWER ONE EIGHTH BLOCK}", " ").strip()


def _mask(target: Target, y: np.ndarray) -> str:
    """A colour for each class, white where it is not known, and what the colours mean."""
    palette = np.array([ImageColor.getrgb(colour) for colour in _COLOURS], np.uint8)
    shown = np.where((y < 0)[..., None], np.uint8(255), palette[y % len(palette)])
    marks = " ".join(_mark(target.classes[c], c) for c in np.unique(y[y >= 0]))
    return f"<div class=seen><img alt=mask src='{_png(shown)}'></div>{marks}"


def _mark(text: str, number: int) -> str:
    colour = _COLOURS[number % len(_COLOURS)]
    return f"<span class=mark><span style='color:{colour}'>■</span> {say(text)}</span>"


def _words(source: Source, name: str, ids: np.ndarray) -> str:
    """Decoded by the tokenizer among the assets; the ids if there is none."""
    for key in (f"{name}.tokenizer.json", f"{name}_tokenizer.json", "tokenizer.json"):
        if key in source.assets:
            return decode(read_tokenizer(source.assets[key]), np.asarray(ids)[None])[0]
    return "ids " + " ".join(map(str, np.asarray(ids).tolist()))


def _boxes(
    source: Source, batch: Batch, i: int, only: str | None = None
) -> list[tuple[str, np.ndarray]]:
    """Class and place (y0, x0, y1, x1 in 0..1) of an example's boxes."""
    found = []
    for name, target in source.spec.targets.items():
        entry = batch["targets"].get(name)
        if target.kind != "boxes" or entry is None or only not in (None, name):
            continue
        y = entry["y"]
        valid = y["valid"][i] & entry["present"][i]
        for kind, at in zip(y["classes"][i][valid], y["boxes"][i][valid], strict=True):
            found.append((target.classes[kind], at))
    return found


def _uri(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _pixels(x: np.ndarray) -> np.ndarray:
    """-1..1 -> uint8."""
    return np.clip(np.round((np.asarray(x, np.float32) + 1) * 127.5), 0, 255).astype(np.uint8)


def _enlarged(pixels: np.ndarray, side: int) -> Image.Image:
    """On a white square; small pictures keep their pixels."""
    image = Image.fromarray(pixels)
    scale = side / max(image.size)
    size = tuple(max(1, round(n * scale)) for n in image.size)
    image = image.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS)
    square = Image.new("RGB", (side, side), "white")
    square.paste(image)
    return square


def _png(pixels: np.ndarray) -> str:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return _uri(out.getvalue(), "image/png")


def _image(
    source: Source, batch: Batch, i: int, name: str, x: np.ndarray, mask: np.ndarray | None
) -> str:
    marks = "".join(
        f"<rect x='{x0:.4f}' y='{y0:.4f}' width='{x1 - x0:.4f}' height='{y1 - y0:.4f}' fill='none' "
        f"stroke='{_COLOURS[j % len(_COLOURS)]}' stroke-width='2' "
        f"vector-effect='non-scaling-stroke'><title>{say(kind)}</title></rect>"
        for j, (kind, (y0, x0, y1, x1)) in enumerate(_boxes(source, batch, i))
    )
    over = f"<svg viewBox='0 0 1 1' preserveAspectRatio='none'>{marks}</svg>" if marks else ""
    return f"<div class=seen><img alt='{say(name)}' src='{_png(_pixels(x))}'>{over}</div>"


def _video(
    source: Source, batch: Batch, i: int, name: str, x: np.ndarray, mask: np.ndarray | None
) -> str:
    frames = _pixels(x if mask is None else x[mask])
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
    return (
        f"<div class=seen><img alt='{say(name)}' src='{_uri(out.getvalue(), 'image/webp')}'></div>"
        f"<div class='seen strip'><img alt='frames' src='{_png(strip)}'></div>"
    )


def _audio(
    source: Source, batch: Batch, i: int, name: str, x: np.ndarray, mask: np.ndarray | None
) -> str:
    return _sound(x if mask is None else x[mask], source.spec.modalities[name].rate)


def _sound(wave: np.ndarray, rate: float | None) -> str:
    """A player, and how loud it is when."""
    wave, out = np.asarray(wave, np.float32), io.BytesIO()
    soundfile.write(
        out, np.clip(wave, -1, 1), round(rate or 16_000), format="WAV", subtype="PCM_16"
    )
    loud = [np.abs(part).max(initial=0) for part in np.array_split(wave, 160)]
    top = max(*loud, 1e-6)
    upper = [f"{j},{20 - 19 * level / top:.1f}" for j, level in enumerate(loud)]
    lower = [f"{j},{20 + 19 * level / top:.1f}" for j, level in reversed(list(enumerate(loud)))]
    return (
        f"<svg class=wave viewBox='0 0 160 40' preserveAspectRatio=none><polygon fill='var(--bar)' "
        f"points='{' '.join(upper + lower)}'/></svg>"
        f"<audio controls preload=none src='{_uri(out.getvalue(), 'audio/wav')}'></audio>"
    )


def _text(
    source: Source, batch: Batch, i: int, name: str, x: np.ndarray, mask: np.ndarray | None
) -> str:
    ids = x if mask is None else x[mask]
    return f"<div title='{len(ids)} tokens'>{say(_words(source, name, ids))}</div>"


def _table(
    source: Source, batch: Batch, i: int, name: str, x: np.ndarray, mask: np.ndarray | None
) -> str:
    names = _named(source.spec.modalities[name], len(x))
    real = np.isfinite(x) if mask is None else np.isfinite(x) & mask
    cells = [
        f"<div><span title='{say(n)}'>{say(n)}</span>{f'{v:.4g}' if ok else '–'}</div>"
        for n, v, ok in zip(names, x, real, strict=True)
    ]
    more = f"<div class=faint>and {len(cells) - _CELLS} more</div>" if len(cells) > _CELLS else ""
    return f"<div class=cells>{''.join(cells[:_CELLS])}</div>{more}"


def _series(
    source: Source, batch: Batch, i: int, name: str, x: np.ndarray, mask: np.ndarray | None
) -> str:
    steps = x if mask is None else x[mask]
    return _plot(steps, _named(source.spec.modalities[name], steps.shape[1]))


def _plot(steps: np.ndarray, names: tuple[str, ...] = ()) -> str:
    """A line for each channel of `[T, channels]`."""
    steps = np.asarray(steps, np.float64)
    if not np.isfinite(steps).any():
        return "<div class=absent>no steps</div>"
    names = names or tuple(str(c) for c in range(steps.shape[1]))
    low, high = np.nanmin(steps), np.nanmax(steps)
    across, scale = max(len(steps) - 1, 1), max(high - low, 1e-9)
    lines = []
    for c in range(min(steps.shape[1], _CELLS)):
        points = " ".join(
            f"{100 * t / across:.2f},{38 - 36 * (v - low) / scale:.2f}"
            for t, v in enumerate(steps[:, c])
            if np.isfinite(v)
        )
        lines.append(
            f"<polyline points='{points}' fill=none stroke='{_COLOURS[c % len(_COLOURS)]}' "
            f"vector-effect=non-scaling-stroke><title>{say(names[c])}</title></polyline>"
        )
    return (
        f"<svg class=plot viewBox='0 0 100 40' preserveAspectRatio=none>{''.join(lines)}</svg>"
        f"<div class=label><span>{len(steps)} steps, {steps.shape[1]} channels</span>"
        f"<span>{low:.3g} to {high:.3g}</span></div>"
    )


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
