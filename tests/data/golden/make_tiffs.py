"""Draws the TIFFs that `test_rasters.py` reads, with tifffile 2024.8.30, which no test needs.

python tests/data/golden/make_tiffs.py tests/data/golden
"""

import sys
from pathlib import Path

import numpy as np


def bands(dtype: str) -> np.ndarray:
    """`[5, 4, 6]`: band, row, column in the digits of each number."""
    b, h, w = np.indices((5, 4, 6))
    return (40 * b + 7 * h + w).astype(dtype)


CASES = {
    "apart": ("uint16", {"planarconfig": "separate"}),
    "together": ("uint8", {"planarconfig": "contig"}),
    "deflated": ("uint16", {"planarconfig": "contig", "compression": "zlib", "predictor": True}),
    "float": ("float32", {"planarconfig": "separate", "compression": "zlib"}),
    "signed": ("int16", {"planarconfig": "separate", "rowsperstrip": 3}),
    "big_endian": ("uint16", {"planarconfig": "contig", "byteorder": ">"}),
    "tiled": ("uint16", {"planarconfig": "contig", "tile": (16, 16)}),
    "lzw": ("uint16", {"planarconfig": "contig", "compression": "lzw"}),
}

if __name__ == "__main__":
    import tifffile

    for name, (dtype, options) in CASES.items():
        x = bands(dtype) * (100 if "16" in dtype else 1)
        if options["planarconfig"] == "contig":
            x = np.moveaxis(x, 0, -1)
        path = Path(sys.argv[1]) / f"{name}.tif"
        tifffile.imwrite(path, x, photometric="minisblack", metadata=None, **options)
