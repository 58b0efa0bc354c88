"""The check of a folder of packed rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from mtmm_jax.data.sources.manifest.bad import Problem
from mtmm_jax.data.sources.manifest.shards import Damaged, read_index
from mtmm_jax.data.sources.sharded.plan import load_plan, problems_of

PACKED = "packed"
"""The entry of `SOURCES` that reads packed rows."""


def is_pack(path: Path) -> bool:
    """Whether a folder holds packed rows."""
    return (path / "pack.json").is_file()


def packed_problems(
    out: Path, progress: Callable[[Iterable[int], int], Iterable[int]]
) -> list[Problem]:
    """The rows that packing found bad, and the shards that are damaged, reading every byte."""
    plan = load_plan(out)
    found = problems_of(plan.header)
    for number in progress(range(plan.shards), plan.shards):
        path = plan.path(out, number)
        try:
            records = read_index(path, whole=True)
        except Damaged as error:
            reason = f"{error}; delete {path.stem}.* and pack the table again"
            found.append(Problem(str(path), None, "", "", reason, "damaged shard"))
            continue
        found += [Problem(**fields) for fields in records["rows"].meta["problems"]]
    return found
