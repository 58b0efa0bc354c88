"""The page that `show` writes: description, statistics and examples of a source."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from mtmm_jax import markup
from mtmm_jax.batch import Batch, Target
from mtmm_jax.data.inspect.parts import answer, show_input
from mtmm_jax.data.pipeline.source import Source
from mtmm_jax.markup import escape
from mtmm_jax.modalities import kind_of

_BARS = 12  # classes with a bar each; more are shown on demand

_STYLE = """
:root { color-scheme: light dark }
@media (prefers-color-scheme: dark) { :root { --text: #e6e8ec; --faint: #9aa0aa;
  --ground: #15171a; --card: #1f2226; --line: #33373d; --chip: #2c3440; --bar: #7fb0e0 } }
* { box-sizing: border-box }
body { font: 14px/1.5 system-ui, sans-serif; color: var(--text); background: var(--ground);
  max-width: 1180px; margin: 0 auto; padding: 1.5em 1em 4em }
h1 { margin: 0; font-size: 26px } h2 { margin: 1.8em 0 .6em; font-size: 18px }
h1, h2, h3 { font-weight: 600 } .faint { color: var(--faint) }
code, pre { font: 12.5px/1.5 ui-monospace, monospace }
pre { white-space: pre-wrap; margin: .6em 0 0 } .lead { font-size: 16px; margin: .2em 0 1em }
details, .stat, .example { background: var(--card); border: 1px solid var(--line);
  border-radius: 8px } details { padding: .5em .9em; margin: .5em 0 }
summary { cursor: pointer } .stat summary { color: var(--faint) }
.stat details { border: 0; padding: 0 } .scroll { overflow-x: auto }
table { border-collapse: collapse; background: var(--card); font-variant-numeric: tabular-nums }
th, td { padding: .3em .8em; text-align: left; border-bottom: 1px solid var(--line) }
th { font-weight: 600; color: var(--faint) } td.n, th.n { text-align: right }
.stats { display: grid; grid-template-columns: repeat(auto-fill, minmax(340px, 1fr)); gap: 12px }
.stat { padding: .7em .9em; overflow-x: auto }
.stat table { margin-top: .4em } .stat th, .stat td { padding: .2em .55em }
.stat h3 { margin: 0; font-size: 15px }
.bar { display: grid; grid-template-columns: 42% 1fr 4.2em; gap: .6em; align-items: center;
  font-size: 12.5px } .bar span:first-child { overflow: hidden; text-overflow: ellipsis;
  white-space: nowrap } .bar i { display: block; height: 8px; border-radius: 3px;
  background: var(--bar); min-width: 1px } .bar b { font-weight: 400; text-align: right;
  font-variant-numeric: tabular-nums }
"""


@dataclasses.dataclass(frozen=True)
class Card:
    """The texts about a source: `about` is its constructor's docstring, `card` its CARD.md."""

    name: str
    config: Mapping[str, Any]
    about: str
    card: str
    shown: str


@dataclasses.dataclass(frozen=True)
class Counted:
    """Counts over `sample` of the `total` examples of a split.

    Attributes:
        present: modality or target -> share of the examples that have it.
        values: target -> `[n, C]` per class, or `[n]` numbers, of the labelled ones.
    """

    total: int
    sample: int
    present: Mapping[str, float]
    values: Mapping[str, np.ndarray]


def page(source: Source, card: Card, counted: Mapping[str, Counted], batch: Batch) -> str:
    """The whole page, without any other file."""
    # Clips and plots need more room than a picture.
    wide = any(kind_of(modality).wide for modality in source.spec.modalities.values())
    lead, _, rest = card.about.partition("\n")
    given = f"<p class=faint>with <code>{escape(json.dumps(card.config))}</code></p>"
    parts = [
        f"<h1>{escape(card.name)}</h1><p class=lead>{escape(lead)}</p>",
        given if card.config else "",
        _folded("Description and settings", rest.strip()),
        _folded("Data card", card.card.strip()),
        "<h2>Inputs</h2>" + _inputs(source, counted),
        "<h2>Targets</h2><div class=stats>"
        + "".join(_stat(n, t, counted) for n, t in source.spec.targets.items())
        + "</div>",
        f"<h2>{escape(card.shown)}</h2><div class=examples>"
        + "".join(_example(source, batch, i) for i in range(len(batch["id"])))
        + "</div>",
    ]
    style = markup.COLOUR_STYLE + _STYLE + markup.cards(270 if wide else 250)
    return markup.page(card.name, style, "".join(parts))


def _folded(title: str, text: str) -> str:
    return f"<details><summary>{title}</summary><pre>{escape(text)}</pre></details>" if text else ""


def _inputs(source: Source, counted: Mapping[str, Counted]) -> str:
    """A line for each modality, a column for each split: the share of examples that have it."""
    head = "".join(
        f"<th class=n>{escape(split)}<br>{c.total:,}</th>" for split, c in counted.items()
    )
    lines = []
    for name, m in source.spec.modalities.items():
        facts = [f"{m.vocabulary:,} token ids"] if m.vocabulary else []
        facts += [f"{m.rate:,g} per second"] if m.rate else []
        facts += [f"{len(m.names)} named columns"] if m.names else []
        shape = " × ".join("any" if n is None else f"{n:,}" for n in m.shape)
        cells = (name, m.kind, f"{m.dtype} {shape}", ", ".join(facts))
        shares = "".join(f"<td class=n>{c.present[name]:.1%}</td>" for c in counted.values())
        lines.append("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + shares)
    sample = max(c.sample for c in counted.values())
    note = f"Shares and values are counted on up to {sample:,} examples of each split."
    titles = "<tr><th>modality<th>kind<th>one example<th>" + head
    return f"<div class=scroll><table>{titles}{''.join(lines)}</table></div><p class=faint>{note}"


def _stat(name: str, target: Target, counted: Mapping[str, Counted]) -> str:
    shares = ", ".join(f"{split} {c.present[name]:.0%}" for split, c in counted.items())
    shares = "all" if all(c.present[name] == 1 for c in counted.values()) else shares
    what = f"{target.kind}, {len(target.classes)} classes" if target.classes else target.kind
    body = (
        f"<h3>{escape(name)}</h3><div class=faint>{escape(what)}; labelled: {escape(shares)}</div>"
    )
    count = target.traits.count
    if count is None:
        return f"<div class=stat>{body}</div>"
    if not count.classes:
        lines = "".join(
            f"<tr><td>{escape(split)}<td class=n>{_figure(y.mean())}<td class=n>{_figure(y.std())}"
            f"<td class=n>{_figure(y.min())}<td class=n>{_figure(y.max())}"
            for split, c in counted.items()
            if len(y := np.asarray(c.values[name], np.float64))
        )
        titles = "<tr><th><th class=n>mean<th class=n>std<th class=n>least<th class=n>most"
        return f"<div class=stat>{body}<table>{titles}{lines}</table></div>"
    split = next((s for s, c in counted.items() if len(c.values[name])), None)
    if split is None:
        return f"<div class=stat>{body}<p class=absent>no labels</p></div>"
    each = counted[split].values[name]
    share = each.sum(0) / (each.sum() or 1) if count.parts else each.mean(0)
    order = range(len(share)) if len(share) <= _BARS else np.argsort(-share, kind="stable")
    widest = max(float(share.max()), 1e-9)
    names = [escape(name) for name in target.classes]
    bars = [
        f"<div class=bar><span title='{names[c]}'>{names[c]}</span>"
        f"<i style='width:{100 * share[c] / widest:.1f}%'></i><b>{share[c]:.1%}</b></div>"
        for c in order
    ]
    more = f"<details><summary>{len(bars) - _BARS} more</summary>{''.join(bars[_BARS:])}</details>"
    of = f"share of the {count.parts} of {split}, {each.sum(1).mean():.2g} in an example"
    of = of if count.parts else f"share of {split}"
    body += f"<div class=faint>{escape(of)}</div>{''.join(bars[:_BARS])}"
    return f"<div class=stat>{body}{more if len(bars) > _BARS else ''}</div>"


def _figure(value: float) -> str:
    """Four digits, but no more than three after the point."""
    return f"{value:.4g}" if abs(value) >= 1 else f"{value:.3f}"


def _example(source: Source, batch: Batch, i: int) -> str:
    described = source.describe(int(batch["id"][i]))
    parts = []
    for name, modality in source.spec.modalities.items():
        entry = batch["inputs"].get(name)
        shown = "<div class=absent>absent</div>"
        if entry is not None and entry["present"][i]:
            shown = show_input(source, batch, i, name)
        kind = kind_of(modality).name
        named = "" if name == kind else kind
        label = f"<div class=label><span>{escape(name)}</span><span>{escape(named)}</span></div>"
        parts.append(f"<div class=input>{label}{shown}</div>")
    answers = []
    for name, target in source.spec.targets.items():
        entry = batch["targets"].get(name)
        said = "<span class=absent>absent</span>"
        if entry is not None and entry["present"][i]:
            said = answer(source, batch, i, name, target)
        wide = " class=wide" if target.traits.wide else ""
        answers.append(f"<dt{wide}>{escape(name)}</dt><dd{wide}>{said}</dd>")
    return (
        f"<div class=example><h3>{escape(described)}</h3>{''.join(parts)}"
        f"<dl>{''.join(answers)}</dl></div>"
    )
