"""From the packed asset to arrays in memory, by way of a TFDS data set prepared once in a cache."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import shutil
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mtmm_jax.data.emoji import asset
from mtmm_jax.data.images import to_planes


@dataclasses.dataclass(frozen=True)
class Emoji:
    """All concepts, in the order of their ids.

    Attributes:
        split: `[N]` names of splits.
        labels: target -> `[N]` class indices, or years.
        classes: target -> class names.
        drawings: style -> `[N, 4, 64, 64]` uint8, premultiplied alpha.
        speech: all utterances end to end, int16.
        spans: `[N, 2, 2]` where each concept's two utterances start and stop in `speech`.
        voice: `[N, 2]` who speaks them.
    """

    names: tuple[str, ...]
    keywords: tuple[tuple[str, ...], ...]
    split: np.ndarray
    labels: dict[str, np.ndarray]
    classes: dict[str, tuple[str, ...]]
    drawings: dict[str, np.ndarray]
    speech: np.ndarray
    spans: np.ndarray
    voice: np.ndarray


def cache(data_dir: str | os.PathLike[str] | None = None) -> Path:
    """Where prepared data live: the argument, else `$MTMM_JAX_DATA`, else the user's cache."""
    chosen = data_dir or os.environ.get("MTMM_JAX_DATA") or "~/.cache/mtmm_jax"
    return Path(chosen).expanduser()


def prepare(data_dir: str | os.PathLike[str] | None = None) -> Path:
    """Makes the TFDS data set unless it is there. Returns the folder to give TFDS as `data_dir`.

    Any number of processes may do so at once: each prepares in a folder of its own, and the first
    to finish renames it into place. The folder's name carries a digest of the asset and of the
    builder, so that a newer package never reads an older one's data.
    """
    builder = Path(__file__).with_name("emoji_dataset_builder.py")
    made_from = [*asset.files(), builder]
    final = cache(data_dir) / f"emoji-{asset.digest(made_from)}"
    if final.is_dir():
        return final
    print(f"preparing the emoji data set in {final} (once, a few seconds)", file=sys.stderr)
    final.parent.mkdir(parents=True, exist_ok=True)
    own = Path(tempfile.mkdtemp(prefix=f"{final.name}.incomplete-", dir=final.parent))
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS speaks of a download; there is none
            _builder(own).download_and_prepare(file_format="array_record")
        shutil.rmtree(own / "downloads", ignore_errors=True)
        own.chmod(0o755)
        os.rename(own, final)
    except OSError:
        if not final.is_dir():  # anything but another process having been first
            raise
    finally:
        shutil.rmtree(own, ignore_errors=True)
    return final


def _builder(data_dir: Path) -> Any:
    import tensorflow_datasets as tfds  # half a second to import, only when data are wanted

    from mtmm_jax.data.emoji.emoji_dataset_builder import Builder

    tfds.disable_progress_bar()
    return Builder(data_dir=os.fspath(data_dir), file_format="array_record")


def load(data_dir: str | os.PathLike[str] | None = None) -> Emoji:
    """Prepares if need be and reads everything."""
    import tensorflow_datasets as tfds

    builder = _builder(prepare(data_dir))
    skip = {"images": {style: tfds.decode.SkipDecoding() for style in asset.STYLES}}
    rows, splits = [], []
    for split in asset.SPLITS:
        source = builder.as_data_source(split, decoders=skip)
        rows += source.__getitems__(range(len(source)))
        splits += [split] * len(source)
    order = np.argsort([row["id"] for row in rows])
    return _assemble(builder.info.features, [rows[i] for i in order], np.array(splits)[order])


def _assemble(features: Any, rows: list[dict[str, Any]], split: np.ndarray) -> Emoji:
    at = ("first", "second")
    waves = [row["speech"][which] for row in rows for which in at]
    stops = np.cumsum([len(wave) for wave in waves])
    spans = np.stack([stops - [len(wave) for wave in waves], stops], 1).reshape(-1, 2, 2)
    drawings = {style: _decode([row["images"][style] for row in rows]) for style in asset.STYLES}
    return Emoji(
        names=tuple(row["name"].decode() for row in rows),
        keywords=tuple(tuple(row["keywords"].decode().split("\n")) for row in rows),
        split=split,
        labels={
            key: np.array([row[key] for row in rows], np.int32)
            for key in ("category", "subcategory", "year")
        },
        classes={
            "category": tuple(features["category"].names),
            "subcategory": tuple(features["subcategory"].names),
            "voice": tuple(features["voices"]["first"].names),
        },
        drawings=drawings,
        speech=np.concatenate(waves),
        spans=spans,
        voice=np.array([[row["voices"][which] for which in at] for row in rows], np.int32),
    )


def _decode(pngs: list[bytes], chunk: int = 64) -> np.ndarray:
    """All drawings of a style; in threads, as both Pillow and NumPy let go of the interpreter."""

    def decode(start: int) -> np.ndarray:
        tiles = [Image.open(io.BytesIO(png)) for png in pngs[start : start + chunk]]
        return to_planes(np.stack([np.asarray(tile) for tile in tiles]))

    with ThreadPoolExecutor() as pool:
        return np.concatenate(list(pool.map(decode, range(0, len(pngs), chunk))))
