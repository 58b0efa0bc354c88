"""A stranger's table, packed, and the config that it was packed by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mtmm_jax.data.sources.sharded import make_plan, open_stream, save_plan
from mtmm_jax.data.sources.sharded.write import pack_shards
from mtmm_jax.readers.limits import LIMITS
from tests.data import stranger

OPTIONS: dict[str, Any] = {
    "modalities": {
        "photo": {"kind": "image", "size": 12},
        "caption": {"kind": "text", "length": 8, "vocabulary": 200},
        "sound": {"kind": "audio", "rate": 4000, "seconds": 0.25, "random": True},
        "numbers": {"kind": "table", "columns": ["weight", "stars"]},
    },
    "targets": {
        "shape": {"kind": "class", "rare": {"below": 3, "to": "other"}},
        "colour": {"kind": "class"},
        "price": {"kind": "number"},
    },
    "split": {"train": 0.6, "validation": 0.2, "test": 0.2},
}


def pack_table(table: Path, out: Path, options: dict[str, Any] | None = None) -> str:
    """Packs a table in this process. Returns the folder."""
    stream = open_stream(table, LIMITS)
    plan, _ = make_plan(stream, options or OPTIONS)
    out.mkdir()
    save_plan(out, plan)
    pack_shards(out, plan, stream, plan.missing(out))
    return str(out)


def pack(root: Path) -> str:
    rows = stranger.draw(root, 60)
    return pack_table(stranger.write_table(root, rows, "t.jsonl"), root / "shards")
