"""Small pieces of HTML: escaped text, pictures, sound, lines; each stands alone in a page."""

from __future__ import annotations

import base64
import html
import io

import numpy as np
import soundfile
from PIL import Image

COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#888888")
CELLS = 24  # columns of a table, lines of a series


def escape(text: object) -> str:
    return html.escape(str(text))


def data_uri(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def to_pixels(x: np.ndarray) -> np.ndarray:
    """-1..1 -> uint8."""
    return np.clip(np.round((np.asarray(x, np.float32) + 1) * 127.5), 0, 255).astype(np.uint8)


def png(pixels: np.ndarray) -> str:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return data_uri(out.getvalue(), "image/png")


def mark(text: str, number: int) -> str:
    colour = COLOURS[number % len(COLOURS)]
    return f"<span class=mark><span style='color:{colour}'>■</span> {escape(text)}</span>"


def sound(wave: np.ndarray, rate: float | None) -> str:
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
        f"<audio controls preload=none src='{data_uri(out.getvalue(), 'audio/wav')}'></audio>"
    )


def plot(steps: np.ndarray, names: tuple[str, ...] = ()) -> str:
    """A line for each channel of `[T, channels]`."""
    steps = np.asarray(steps, np.float64)
    if not np.isfinite(steps).any():
        return "<div class=absent>no steps</div>"
    names = names or tuple(str(c) for c in range(steps.shape[1]))
    low, high = np.nanmin(steps), np.nanmax(steps)
    across, scale = max(len(steps) - 1, 1), max(high - low, 1e-9)
    lines = []
    for c in range(min(steps.shape[1], CELLS)):
        points = " ".join(
            f"{100 * t / across:.2f},{38 - 36 * (v - low) / scale:.2f}"
            for t, v in enumerate(steps[:, c])
            if np.isfinite(v)
        )
        lines.append(
            f"<polyline points='{points}' fill=none stroke='{COLOURS[c % len(COLOURS)]}' "
            f"vector-effect=non-scaling-stroke><title>{escape(names[c])}</title></polyline>"
        )
    return (
        f"<svg class=plot viewBox='0 0 100 40' preserveAspectRatio=none>{''.join(lines)}</svg>"
        f"<div class=label><span>{len(steps)} steps, {steps.shape[1]} channels</span>"
        f"<span>{low:.3g} to {high:.3g}</span></div>"
    )
