"""The data card: prose and tables, the numbers counted from the asset."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np

from mtmm_jax.data.pipeline.source import SPLITS
from mtmm_jax.data.sources import packed
from mtmm_jax.data.sources.digits import asset
from mtmm_jax.data.sources.digits.asset import DIGITS, VIEWS

_TEMPLATE = Path(__file__).with_name("card_template.md")
_MEANING = {
    "fou": "Fourier coefficients of the character's shape",
    "fac": "profile correlations",
    "kar": "Karhunen-Loève coefficients",
    "pix": "means of 2 x 3 pixels, 15 x 16 of them",
    "zer": "Zernike moments",
    "mor": "morphological features",
}


def render(folder: Path = asset.FOLDER) -> str:
    """The text of CARD.md for the asset in `folder`."""
    digits, splits = asset.read_labels(folder)
    views = {name: asset.read_view(name, folder) for name in VIEWS}
    counts = Counter(zip(digits, splits, strict=True))
    of_split = Counter(splits)
    lines = [[digit, *(counts[digit, split] for split in SPLITS)] for digit in DIGITS]
    return _TEMPLATE.read_text(encoding="utf-8").format(
        digits=len(digits),
        size=sum(path.stat().st_size for path in folder.iterdir()),
        views=packed.table(
            ["view", "what", "columns", "lowest", "highest"],
            [
                [name, _MEANING[name], x.shape[1], f"{x.min():.4g}", f"{x.max():.4g}"]
                for name, x in views.items()
            ],
        ),
        alike=_copies(views["mor"]),
        twins=_copies(views["pix"]),
        splits=packed.table(
            ["digit", *SPLITS], [*lines, ["all", *(of_split[split] for split in SPLITS)]]
        ),
        test=of_split["test"],
        error=np.sqrt(0.95 * 0.05 / of_split["test"]),
    )


def _copies(rows: np.ndarray) -> int:
    """The number of rows that equal an earlier one."""
    return len(rows) - len(np.unique(rows, axis=0))
