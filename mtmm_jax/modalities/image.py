"""Pictures, `[H, W, channels]` in -1..1."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

import numpy as np
import PIL

from mtmm_jax.chance import inside
from mtmm_jax.markup import COLOURS, escape, png, to_pixels
from mtmm_jax.modalities.columns import Column, Input, one_present, present
from mtmm_jax.modalities.corruption import ABSENT, SHARES, Corruption, Place, of_values
from mtmm_jax.modalities.kind import ModalityKind
from mtmm_jax.modalities.modality import Modality
from mtmm_jax.modalities.shown import Example
from mtmm_jax.modalities.units import OverPicture, Units
from mtmm_jax.ranges import Range, Real, Side
from mtmm_jax.readers.arrays import NARROW, npy_shape
from mtmm_jax.readers.cells import Attempt, Setting
from mtmm_jax.readers.decoder import Decoder
from mtmm_jax.readers.limits import Limits, Unreadable, guard
from mtmm_jax.readers.own import OWN, own_bytes, read_own
from mtmm_jax.readers.pictures import IMAGES, Picture, decode_image, stack_images
from mtmm_jax.readers.rasters import (
    MOST_CHANNELS,
    RASTERS,
    Raster,
    decode_raster,
    look,
    stack_rasters,
)
from mtmm_jax.registry import ConfigError

SIDE = 8  # units along a picture's side


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageColumn(Column):
    """A picture, centred on a white square of `size` pixels.

    With other than 3 `channels`, or a `range`, it may be a 16-bit PNG, a TIFF of several bands or a
    `.npy`, and lies on a square of zeros. Values from the lower to the upper end of the `range`
    become -1..1; without one all that its dtype holds, 8 or 16 bits. One channel of a coloured
    picture is its luminance.
    """

    size: Side = 64
    channels: Annotated[int, Range(1, MOST_CHANNELS)] = 3
    range: Sequence[Real] | None = None

    pictured: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.range is not None:
            check_range(self.range, f"{self.where}.range")

    def fit(self, cells: list[str | None], setting: Setting, *_: Any) -> Input:
        if self.channels != 3 or self.range is not None:
            return self._fit_raster(cells, setting)
        folder, limits, size = setting.folder, setting.limits, self.size
        decoder = Decoder(
            "image",
            {"size": size, "pillow": PIL.__version__},
            decode=lambda name: decode_image(folder.read(name), size, limits),
            pack=lambda one: ({"height": one.height, "width": one.width}, one.pixels),
            unpack=lambda meta, pixels: Picture(pixels, **meta),
        )
        read = setting.once(self.at, cells, decoder)

        def batch(rows: np.ndarray, chance: Any, attempt: Attempt) -> Any:
            found = attempt(self.at, cells, lambda name, _: read(name))
            x = stack_images([None if one is None else one.pixels for one in found], size)
            return {"x": x, "present": present(found)}, found

        return Input(Modality("image", (size, size, 3), "float32"), batch)

    def _fit_raster(self, cells: list[str | None], setting: Setting) -> Input:
        folder, limits, span = setting.folder, setting.limits, self.range
        shape = (self.size, self.size, self.channels)
        options = {"shape": list(shape), "ranged": span is not None, "pillow": PIL.__version__}
        decoder = Decoder(
            "image",
            options,
            decode=lambda name: decode_raster(
                folder.read(name), self.size, self.channels, limits, span is not None
            ),
            pack=lambda one: ({"height": one.height, "width": one.width}, one.pixels),
            unpack=lambda meta, pixels: Raster(pixels, **meta),
        )
        read = setting.once(self.at, cells, decoder)

        def batch(rows: np.ndarray, chance: Any, attempt: Attempt) -> Any:
            found = attempt(self.at, cells, lambda name, _: read(name))
            x = stack_rasters([None if one is None else one.pixels for one in found], shape, span)
            return {"x": x, "present": present(found)}, found

        return Input(Modality("image", shape, "float32"), batch)


def check_range(span: Sequence[float], where: str) -> None:
    if len(span) != 2 or not span[0] < span[1]:
        raise ConfigError(f"{where}: {list(span)} is not a lower end and an upper one above it")


def read_image(
    path: str | os.PathLike[str], modality: Modality, span: Sequence[float] | None = None
) -> dict[str, Any]:
    """`x` is `[1, S, S, channels]` float32 in -1..1: centred, upright as EXIF has it."""
    size, _, channels = modality.shape
    if channels != 3 or span is not None:
        ranged = span is not None
        decode = lambda where: decode_raster(  # noqa: E731
            own_bytes(where), size, channels, OWN, ranged
        )
        found = read_own(path, "image", RASTERS, decode)
        return one_present(stack_rasters([found.pixels], modality.shape, span))
    decode = lambda where: decode_image(own_bytes(where), size, OWN)  # noqa: E731
    return one_present(stack_images([read_own(path, "image", IMAGES, decode).pixels], size))


def patches(modality: Modality, shape: tuple[int, ...]) -> list[tuple[int, int]]:
    del modality
    return [(size, SIDE) for size in shape[:2]]


def patch_names(modality: Modality, count: int) -> list[str]:
    del modality
    side = round(count**0.5)
    across = _thirds(side, ("left", "centre", "right"))
    down = _thirds(side, ("top", "middle", "bottom"))
    return [
        f"row {i // side + 1}, column {i % side + 1} ({down[i // side]} {across[i % side]})"
        for i in range(count)
    ]


def _thirds(count: int, words: tuple[str, ...]) -> list[str]:
    return [words[3 * i // count] for i in range(count)]


def border(x: np.ndarray, entry: Mapping[str, Any]) -> np.ndarray:
    """A plain picture of the median colour of the border."""
    del entry
    top, left = x[..., 0, :, :], x[..., :, 0, :]
    around = np.concatenate([top, left, x[..., -1, :, :], x[..., :, -1, :]], axis=-2)
    return np.broadcast_to(np.median(around, axis=-2)[..., None, None, :], x.shape)


def colours(x: np.ndarray) -> np.ndarray:
    """`[..., channels]` in -1..1 -> `[..., 3]` uint8: what is seen of a picture.

    Three channels are red, green and blue. Of one all are that, of two the third is the mean, of
    more the first three are shown; these are stretched from the darkest to the brightest percent.
    """
    x = np.asarray(x, np.float32)
    channels = x.shape[-1]
    if channels == 3:
        return to_pixels(x)
    if channels == 2:
        x = np.concatenate([x, x.mean(-1, keepdims=True)], axis=-1)
    shown = np.repeat(x, 3, axis=-1) if channels == 1 else x[..., :3]
    low, high = np.percentile(shown, (1, 99)) if shown.size else (-1.0, 1.0)
    return to_pixels((shown - low) * (2 / max(high - low, 1e-6)) - 1)


def grey(x: np.ndarray) -> np.ndarray:
    """0..1, to lie under colours that mean something else."""
    if x.shape[-1] != 3:
        return colours(x).mean(-1) / 255
    return np.clip((x + 1) / 2, 0, 1).mean(-1)


def over_picture(values: np.ndarray, x: np.ndarray, modality: Modality) -> OverPicture:
    sides = [min(most, size) for size, most in patches(modality, x.shape)]
    return OverPicture(values.reshape(sides), grey(x))


def pixel_noise(x: np.ndarray, place: Place, level: float) -> np.ndarray:
    return np.clip(x + level * place.normal("noise", *x.shape[1:]), -1, 1)


def _blur(x: np.ndarray, place: Place, level: float) -> np.ndarray:
    from scipy import ndimage  # slow to import, and only damage needs it

    del place
    sigma = level * min(x.shape[-3:-1])
    return ndimage.gaussian_filter(x, (0,) * (x.ndim - 3) + (sigma, sigma, 0), mode="nearest")


def _occlusion(x: np.ndarray, place: Place, level: float) -> np.ndarray:
    """A grey block about a fixed point of the row's own, `level` of the picture's area."""
    height, width = x.shape[1:3]
    at = place.uniform("occlusion", 2)
    holes = []
    for axis, size in enumerate((height, width)):
        side = round(level**0.5 * size)
        # Where its middle is does not depend on its size, so that larger holes hold smaller ones.
        first = np.round(at[:, axis] * (size - side)).astype(np.int32)
        holes.append(inside(size, first, first + side))
    hole = holes[0][:, :, None] & holes[1][:, None]
    return np.where(hole[..., None], np.float32(0), x)


PIXEL_NOISE = Corruption((0.1, 0.2, 0.4, 0.6, 1.0), "standard deviation", of_values(pixel_noise))


def show(example: Example) -> str:
    marks = "".join(
        f"<rect x='{x0:.4f}' y='{y0:.4f}' width='{x1 - x0:.4f}' height='{y1 - y0:.4f}' fill='none' "
        f"stroke='{COLOURS[j % len(COLOURS)]}' stroke-width='2' "
        f"vector-effect='non-scaling-stroke'><title>{escape(kind)}</title></rect>"
        for j, (kind, (y0, x0, y1, x1)) in enumerate(example.boxes)
    )
    over = f"<svg viewBox='0 0 1 1' preserveAspectRatio='none'>{marks}</svg>" if marks else ""
    seen = png(colours(example.x))
    return f"<div class=seen><img alt='{escape(example.name)}' src='{seen}'>{over}</div>"


def _is_picture(data: bytes) -> bool:
    """Whether a `.npy` file's array has the shape of one: `[H, W, channels]` or a wide `[H, W]`."""
    shape = npy_shape(data)
    return len(shape) == 3 or (len(shape) == 2 and shape[1] > NARROW)


def guess(contents: Sequence[bytes]) -> dict[str, Any]:
    """Channels and range of pictures that are not of 8 bits and 1, 3 or 4 channels."""
    found = []
    for data in contents:
        with contextlib.suppress(Unreadable):
            found.append(guard(look, data, Limits()))
    plain = [one for one in found if one[0] <= 4 and one[1] in ("uint8", "bool")]
    options: dict[str, Any] = {"size": 64}
    if len(plain) * 2 >= len(found):
        return options
    others = [one for one in found if one not in plain]
    channels = collections.Counter(one[0] for one in others).most_common(1)[0][0]
    least, most = (min(one[2] for one in others), max(one[3] for one in others))
    if others[0][1] == "uint8":
        return options | {"channels": channels}
    if others[0][1].startswith("uint"):  # 12 bits in 16 would be nearly black
        least, most = 0, 2 ** max(int(most).bit_length(), 1) - 1
    span = [float(f"{least:.4g}"), float(f"{most:.4g}")] if least < most else [least, least + 1]
    return options | {"channels": channels, "range": span}


IMAGE = ModalityKind(
    "image",
    dimensions=3,
    column=ImageColumn,
    options=lambda modality, given: {"size": modality.shape[0], "channels": modality.shape[2]},
    read=lambda value, kept: read_image(value, kept.modality, kept.options.get("range")),
    endings=(".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"),
    magic=rb"\x89PNG|\xff\xd8\xff|RIFF....WEBP|BM|II\*\0|MM\0\*",
    claims=_is_picture,
    guess=guess,
    encoder="resnet",
    fixed="image_gradients",
    units=Units(patches, border, patch_names, over_picture, masked=False),
    corruptions={
        "noise": PIXEL_NOISE,
        "blur": Corruption((0.01, 0.02, 0.04, 0.07, 0.12), "sides", of_values(_blur)),
        "occlusion": Corruption(SHARES, "share of the area", of_values(_occlusion)),
        "absent": ABSENT,
    },
    show=show,
    frames=lambda x: colours(x)[None],
)
