"""Splits by concept: about 80/10/10, the same share of every category, no drawing in two splits."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

# Below are duplicates and near ones (Noto's superhero and woman superhero: .023); from .026 on
# drawings differ in what they show (neutral and confused face, Honduras and Nicaragua).
SAME_DRAWING = 0.024
LARGEST_HELD_OUT = 4
PERIOD = 10  # of ten consecutive units one is for validation, one for test


def order(text: str) -> str:
    """A hash to sort by: deterministic, and unrelated to the meaning of the text."""
    return hashlib.sha256(text.encode()).hexdigest()


def pairwise(drawings: np.ndarray) -> np.ndarray:
    """Root-mean-square difference of every two `[N, 64, 64, 4]` drawings seen at 16 px, 0 to 1."""
    small = drawings.reshape(len(drawings), 16, 4, 16, 4, 4).astype(np.float32) / 255
    small[..., :3] *= small[..., 3:]  # what is transparent has no colour
    flat = small.mean((2, 4)).reshape(len(drawings), -1).astype(np.float64)
    square = np.square(flat).sum(1)
    difference = square[:, None] + square - 2 * flat @ flat.T
    return np.sqrt(np.maximum(difference, 0) / flat.shape[1])


def group(names: Sequence[str], styles: Sequence[np.ndarray]) -> list[int]:
    """The group of each concept: equal names, or equal drawings in any style, share one."""
    parent = list(range(len(names)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    pairs = [
        tuple(pair) for tiles in styles for pair in np.argwhere(pairwise(tiles) < SAME_DRAWING)
    ]
    first: dict[str, int] = {}
    pairs += [(first.setdefault(name, i), i) for i, name in enumerate(names)]
    for i, j in pairs:
        parent[max(root(i), root(j))] = min(root(i), root(j))
    return [root(i) for i in range(len(names))]


def assign(
    codes: Sequence[str], strata: Sequence[tuple[str, str]], groups: Sequence[int]
) -> list[str]:
    """The split of each concept.

    Groups are laid out by category, subcategory, then hash, and dealt in turn, so that every
    stratum is cut in the same proportion. The first group of each subcategory is for training (a
    class must be seen to be learned), and so are large groups (many copies of one drawing would
    count many times in a test).
    """
    members = defaultdict(list)
    for i, root in enumerate(groups):
        members[root].append(i)
    roots = sorted(members, key=lambda i: (strata[i], order(codes[i])))
    split, seen, turn = {}, set(), 0
    for root in roots:
        kept = strata[root] not in seen or len(members[root]) > LARGEST_HELD_OUT
        seen.add(strata[root])
        if kept:
            split[root] = "train"
            continue
        split[root] = {2: "validation", 6: "test"}.get(turn % (PERIOD - 1), "train")
        turn += 1
    return [split[root] for root in groups]
