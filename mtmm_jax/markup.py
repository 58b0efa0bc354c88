"""HTML: pages that run nothing and load nothing, and their small pieces: text, tables, pictures,
sound, lines. What a piece is given is text, and escaped; pieces that hold pieces say so."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable

import numpy as np
import soundfile
from PIL import Image

COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#888888")
CELLS = 24  # columns of a table, lines of a series


_CONTROLS = dict.fromkeys((*range(0x20), 0x7F, *range(0x80, 0xA0)), "\ufffd") | dict.fromkeys(
    (0x202A, 0x202B, 0x202C, 0x202D, 0x202E, 0x2066, 0x2067, 0x2068, 0x2069), "\ufffd"
)  # controls, and what turns the direction of the text around
for _kept in "\t\n\r":
    del _CONTROLS[ord(_kept)]


def escape(text: object) -> str:
    """Text that shows as it is, in an element or in a quoted attribute."""
    plain = str(text).encode("utf-8", "replace").decode()
    return html.escape(plain.translate(_CONTROLS))


COLOUR_STYLE = """
:root { --text: #1d1f23; --faint: #6a6f78; --ground: #f5f6f8; --card: #fff; --line: #dfe2e7;
  --chip: #e8edf5; --bar: #4477aa }
"""
"""The colours that pieces use."""

_CARD_STYLE = """
.absent { color: var(--faint); font-style: italic } .faint { color: var(--faint) }
.examples { display: grid; gap: 12px; align-items: start;
  grid-template-columns: repeat(auto-fill, minmax(WIDTHpx, 1fr)) }
.example { padding: .8em; overflow: hidden } .example h3 { margin: 0 0 .5em; font-size: 13.5px;
  overflow-wrap: anywhere } .input { margin-bottom: .6em } .label { font-size: 11.5px;
  color: var(--faint); display: flex; justify-content: space-between }
.seen { position: relative; line-height: 0; max-width: 200px }
.seen.strip { max-width: none } .seen img { width: 100%; border-radius: 4px;
  image-rendering: pixelated; outline: 1px solid var(--line) }
.seen svg { position: absolute; inset: 0; width: 100%; height: 100%; overflow: visible }
.strip img { width: 100%; margin-top: 4px }
audio { width: 100%; height: 32px } svg.wave { width: 100%; height: 40px; display: block }
svg.plot { width: 100%; height: 90px; display: block }
dl { display: grid; grid-template-columns: fit-content(48%) 1fr; gap: .1em .8em;
  margin: .6em 0 0; padding-top: .5em; border-top: 1px solid var(--line); font-size: 13px }
dt { color: var(--faint); overflow-wrap: anywhere } dd { margin: 0; overflow-wrap: break-word }
dt.wide, dd.wide { grid-column: 1 / -1 } dd.wide { margin: 0 0 .3em } .mark { margin-right: .8em;
  white-space: nowrap }
.chip { display: inline-block; background: var(--chip); border-radius: 9px; padding: 0 .6em;
  margin: 1px 3px 1px 0 } .cells { display: grid; gap: 0 .9em; font-size: 12px;
  grid-template-columns: repeat(auto-fill, minmax(118px, 1fr)) } .cells div { display: flex;
  justify-content: space-between; gap: .5em; border-bottom: 1px solid var(--line) }
.cells span { color: var(--faint); overflow: hidden; text-overflow: ellipsis;
  white-space: nowrap }
"""


def cards(width: int) -> str:
    """CSS of examples in a grid, of their inputs and labels; a card is at least so many pixels."""
    return _CARD_STYLE.replace("WIDTH", str(width))


POLICY = (
    "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'; "
    "base-uri 'none'; form-action 'none'"
)
"""Of every page: no script, nothing from elsewhere."""


def page(title: str, style: str, body: str) -> str:
    """A page in one file.

    Args:
        title: text.
        style: CSS, written in this package.
        body: pieces of HTML.
    """
    return (
        "<!doctype html><html lang=en><head><meta charset=utf-8>"
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        "<meta name=viewport content='width=device-width'>"
        f"<title>{escape(title)}</title><style>{style}</style></head>"
        f"<body>{body}</body></html>\n"
    )


def row(cells: Iterable[object], tag: str = "td") -> str:
    """A row of a table, of texts."""
    return f"<tr>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in cells)}</tr>"


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
