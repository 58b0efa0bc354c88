"""The data card: prose and tables, the numbers counted from the asset."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from mtmm_jax.data.sources.emoji.asset import RATE, SPLITS, STYLES, TILE, Table
from mtmm_jax.data.sources.emoji.splits import LARGEST_HELD_OUT, SAME_DRAWING

_TEMPLATE = Path(__file__).with_name("card_template.md")


def render(table: Table, size: int) -> str:
    """The text of CARD.md for an asset of `size` bytes."""
    concepts = table.concepts
    seconds = np.array([(b - a) / RATE for c in concepts for a, b in c.spans])
    subcategories = Counter(c.subcategory for c in concepts)
    tested = {c.subcategory for c in concepts if c.split == "test"}
    return _TEMPLATE.read_text(encoding="utf-8").format(
        concepts=len(concepts),
        drawings=len(concepts) * len(STYLES),
        styles=" and ".join(STYLES),
        tile=TILE,
        keywords=sum(len(c.keywords) for c in concepts),
        categories=len(table.unique("category")),
        subcategories=len(subcategories),
        first_year=min(c.year for c in concepts),
        last_year=max(c.year for c in concepts),
        voices=len(table.voices),
        utterances=len(seconds),
        minutes=round(seconds.sum() / 60),
        rate=RATE,
        median=float(np.median(seconds)),
        size=size,
        made_with=", ".join(f"{key} {value}" for key, value in table.made_with.items()),
        same=SAME_DRAWING,
        largest=LARGEST_HELD_OUT,
        flags=np.mean([c.category == "Flags" for c in concepts]),
        unseen=len(set(subcategories) - tested),
        smallest=min(subcategories.values()),
        by_split=_counts("split", [("concepts", [c.split for c in concepts])], SPLITS),
        by_category=_by("category", table, table.unique("category")),
        by_voice=_voices(table),
        by_year=_by("year", table, sorted({c.year for c in concepts})),
    )


def _by(field: str, table: Table, values: Sequence[object]) -> str:
    columns = [
        (split, [getattr(c, field) for c in table.concepts if c.split == split]) for split in SPLITS
    ]
    return _counts(field, columns, values)


def _voices(table: Table) -> str:
    columns = [
        (split, [voice for c in table.concepts if c.split == split for voice in c.voices])
        for split in SPLITS
    ]
    return _counts("voice (utterances)", columns, table.voices)


def _counts(
    title: str, columns: Sequence[tuple[str, Iterable[object]]], values: Sequence[object]
) -> str:
    """A table of how often each value occurs in each column."""
    counted = [(name, Counter(column)) for name, column in columns]
    lines = [[title, *(name for name, _ in counted)], ["---"] * (1 + len(counted))]
    lines += [[str(v), *(f"{count[v]:,}" for _, count in counted)] for v in values]
    lines += [["all", *(f"{sum(count.values()):,}" for _, count in counted)]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
