"""Transforms of pictures: `[H, W, 3]`, uint8 in 0..255 until a stage needs fractions."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
from PIL import Image, ImageOps

from mtmm_jax.data.transforms import augment
from mtmm_jax.data.transforms.stage import (
    Form,
    Stage,
    Transform,
    each,
)
from mtmm_jax.ranges import Margin, NonNegative, Share, Side
from mtmm_jax.readers.images import resize_matrix
from mtmm_jax.registry import ConfigError, choose

# Mean and standard deviation of the channels of pictures in 0..1.
NORMALISATIONS = {
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "cifar": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
}


def picture(data: bytes, where: str) -> np.ndarray:
    """An encoded picture -> uint8 `[H, W, 3]`: upright as EXIF has it, on white, first frame."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            image = ImageOps.exif_transpose(image)
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ConfigError(f"{where}: cannot decode a picture: {error}") from error


def decode_image(form: Form, where: str) -> Stage:
    height, width = form.shape[:2] if form.shape else (None, None)
    out = Form("image", (height, width, 3), "uint8", 0, 255)
    return Stage(out, each(lambda data: picture(data, where)), each=True)


def resize(form: Form, where: str, height: Side, width: Side | None = None) -> Stage:
    """To `height` x `width` (a square by default), without keeping the proportions."""
    width = width or height
    out = dataclasses.replace(form, shape=(height, width, 3))
    return _resized(form, out, lambda h, w: (height, width))


def resize_short(form: Form, where: str, size: Side) -> Stage:
    """The shorter side to `size`, in proportion."""

    def fitted(height: int, width: int) -> tuple[int, int]:
        shorter = min(height, width)
        return max(round(height * size / shorter), size), max(round(width * size / shorter), size)

    known = form.stacks
    shape = (*fitted(*form.shape[:2]), 3) if known else (None, None, 3)
    return _resized(form, dataclasses.replace(form, shape=shape), fitted)


def _resized(form: Form, out: Form, size_of) -> Stage:
    """By Pillow from 8 bits, one by one; by matrices from floats, all at once.

    Both use a triangle filter as wide as the larger of the two pixels.
    """
    if form.dtype == "uint8":

        def one(pixels: np.ndarray) -> np.ndarray:
            height, width = size_of(*pixels.shape[:2])
            if pixels.shape[:2] == (height, width):
                return pixels
            small = Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR)
            return np.asarray(small)

        return Stage(out, each(one), each=True)

    def many(x: np.ndarray, u: None) -> np.ndarray:
        one, zero = np.ones(1, np.float32), np.zeros(1, np.float32)
        rows, columns = (
            resize_matrix(source, size, one, zero)[0]
            for source, size in zip(x.shape[1:3], size_of(*x.shape[1:3]), strict=True)
        )
        across = np.moveaxis(x, -1, 1) @ columns.T
        return np.ascontiguousarray(np.moveaxis(rows @ across, 1, -1))

    return Stage(out, many)


def center_crop(form: Form, where: str, height: Side, width: Side | None = None) -> Stage:
    """The middle; a picture that is too small gets a margin in the middle of its range."""
    out, _ = _cropped(form, where, height, width or height, 0)
    return Stage(out, _centre(form, out))


def random_crop(
    form: Form, where: str, height: Side, width: Side | None = None, pad: Margin = 0
) -> Stage:
    """A window anywhere in the picture and `pad` pixels around it; the middle in evaluation."""
    out, (height, width) = _cropped(form, where, height, width or height, pad)

    def apply(x: np.ndarray, u: np.ndarray) -> np.ndarray:
        return augment.crop(x, u, pad, height, width, form.middle)

    return Stage(out, apply, draws=2, plain=_centre(form, out))


def _cropped(
    form: Form, where: str, height: int, width: int, pad: int
) -> tuple[Form, tuple[int, int]]:
    for have, want in zip(form.shape, (height, width), strict=False):
        if have is not None and want > have + 2 * pad:
            raise ConfigError(
                f"{where}: {height} x {width} does not fit into {form}"
                f"{f' with {pad} pixels around it' if pad else ''}"
            )
    return dataclasses.replace(form, shape=(height, width, 3)), (height, width)


def _centre(form: Form, out: Form):
    height, width, _ = out.shape

    def apply(x: np.ndarray, u: None) -> np.ndarray:
        top, left = (x.shape[1] - height) // 2, (x.shape[2] - width) // 2
        if top >= 0 and left >= 0:
            return x[:, top : top + height, left : left + width]
        at = np.ones(len(x), np.int32)
        return augment.window(x, top * at, left * at, height, width, form.middle)

    return apply


def flip(form: Form, where: str, share: Share = 0.5) -> Stage:
    """Mirrors a share of the pictures left to right."""
    return Stage(form, lambda x, u: augment.flip(x, u, share), draws=1)


def color(
    form: Form,
    where: str,
    brightness: NonNegative = 0.2,
    contrast: NonNegative = 0.2,
    saturation: NonNegative = 0.2,
) -> Stage:
    """Jitters brightness, contrast and saturation by up to these shares."""
    if form.low is None:
        raise ConfigError(f"{where}: needs pictures in a known range: put it before normalize")

    def apply(x: np.ndarray, u: np.ndarray) -> np.ndarray:
        return augment.color(_floats(x), u, brightness, contrast, saturation, out.low, out.high)

    out = _float_form(form)
    return Stage(out, apply, draws=3, plain=lambda x, u: _floats(x))


def cut_out(form: Form, where: str, largest: Share = 0.4, share: Share = 0.5) -> Stage:
    """Greys out a square of up to `largest` of the shorter side in a share of the pictures."""
    fill = round(form.middle) if form.dtype == "uint8" else form.middle
    return Stage(form, lambda x, u: augment.cut_out(x, u, largest, share, fill), draws=4)


def grayscale(form: Form, where: str) -> Stage:
    """All three channels as bright as the pixel looks."""

    def apply(x: np.ndarray, u: None) -> np.ndarray:
        grey = augment.luminance(x.astype(np.float32))
        grey = np.rint(grey) if x.dtype == np.uint8 else grey
        return np.repeat(grey.astype(x.dtype), 3, axis=-1)

    return Stage(form, apply)


def to_float(form: Form, where: str) -> Stage:
    """8 bits to float32 in 0..1."""
    return Stage(_float_form(form), lambda x, u: _floats(x))


def normalize(form: Form, where: str, by: str = "half") -> Stage:
    """`half`: to -1..1, as this package's models expect; `imagenet`, `cifar`: by their colours."""
    mean, std = NORMALISATIONS[choose(by, NORMALISATIONS, where, "normalisation")]
    if (form.low, form.high) not in ((0, 255), (0, 1)):
        raise ConfigError(f"{where}: the pictures have been normalised already")
    scale = np.float32(1 / (form.high * np.array(std)))
    shift = np.float32(-np.array(mean) / std)

    def apply(x: np.ndarray, u: None) -> np.ndarray:
        out = x * scale
        out += shift
        return out

    low, high = (-1.0, 1.0) if by == "half" else (None, None)
    return Stage(dataclasses.replace(form, dtype="float32", low=low, high=high), apply)


def _floats(x: np.ndarray) -> np.ndarray:
    return x * np.float32(1 / 255) if x.dtype == np.uint8 else x


def _float_form(form: Form) -> Form:
    if form.dtype != "uint8":
        return form
    return dataclasses.replace(form, dtype="float32", low=0.0, high=1.0)


TRANSFORMS = {
    name: Transform(build, ("image",))
    for name, build in {
        "resize": resize,
        "resize_short": resize_short,
        "center_crop": center_crop,
        "random_crop": random_crop,
        "flip": flip,
        "color": color,
        "cut_out": cut_out,
        "grayscale": grayscale,
        "to_float": to_float,
        "normalize": normalize,
    }.items()
}
