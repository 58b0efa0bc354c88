"""Pictures of any channels and bits, from the file to the batch, the model and what is seen."""

import io
import json
import struct
import zlib

import jax
import numpy as np
import pytest
from PIL import Image

from mtmm_jax import data, registry
from mtmm_jax.batch import Modality, Spec
from mtmm_jax.data.inspect import parts
from mtmm_jax.data.pipeline.augment_jit import augmenter
from mtmm_jax.encoders import ENCODERS
from mtmm_jax.modalities import kind_of
from mtmm_jax.modalities.image import colours, read_image
from mtmm_jax.modalities.shown import Example
from mtmm_jax.readers.limits import Limits, Unreadable
from mtmm_jax.readers.rasters import decode_raster, stack_rasters
from mtmm_jax.registry import ConfigError
from tests import toy
from tests.data.golden.make_tiffs import CASES, bands

GOLDEN = toy.GOLDEN.parents[1] / "data" / "golden"
WIDE = np.arange(20 * 20, dtype=np.uint16).reshape(20, 20) * 150


def _bytes(image, format):
    out = io.BytesIO()
    image.save(out, format)
    return out.getvalue()


def _npy(x):
    out = io.BytesIO()
    np.save(out, x)
    return out.getvalue()


@pytest.mark.parametrize("name", sorted(set(CASES) - {"lzw"}))
def test_bands_of_a_tiff_are_those_that_tifffile_wrote(name):
    dtype, _ = CASES[name]
    whole = np.moveaxis(bands(dtype) * (100 if "16" in dtype else 1), 0, -1)
    found = decode_raster((GOLDEN / f"{name}.tif").read_bytes(), 6, 5, Limits(), ranged=True)
    np.testing.assert_array_equal(found.pixels[1:5], whole)
    np.testing.assert_array_equal(found.pixels[[0, 5]], 0)  # margins
    assert found.pixels.dtype == (dtype if dtype.startswith("u") else "float32")
    assert found[1:] == (4, 6)


def test_a_tiff_that_is_not_read_names_the_way_out():
    with pytest.raises(Unreadable, match="save it uncompressed or deflated"):
        decode_raster((GOLDEN / "lzw.tif").read_bytes(), 6, 5, Limits())


@pytest.mark.parametrize(
    "content",
    [
        _bytes(Image.fromarray(WIDE), "PNG"),
        _bytes(Image.fromarray(WIDE), "TIFF"),
        _npy(WIDE),
        _npy(WIDE[..., None]),
        _npy(np.asfortranarray(WIDE)),
        _npy(WIDE.astype(">u2")),
    ],
    ids=["png", "tiff", "npy", "npy of one band", "by columns", "big endian"],
)
def test_16_bits_stay(content):
    found = decode_raster(content, 20, 1, Limits())
    np.testing.assert_array_equal(found.pixels[..., 0], WIDE)
    assert found.pixels.dtype == np.uint16
    x = stack_rasters([found.pixels, None], (20, 20, 1))
    np.testing.assert_allclose(x[0, ..., 0], WIDE / 65535 * 2 - 1, atol=1e-6)
    assert len(np.unique(x[0])) == WIDE.size  # 8 bits would leave 235
    assert (x[1] == 0).all()


def test_one_channel_of_colours_is_luminance_and_more_are_as_they_are():
    rgb = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    grey = decode_raster(_bytes(Image.fromarray(rgb), "PNG"), 8, 1, Limits()).pixels
    wanted = rgb @ np.array([299, 587, 114]) / 1000
    np.testing.assert_allclose(grey[..., 0], wanted, atol=1)
    rgba = np.dstack([rgb, rgb[..., :1]])
    found = decode_raster(_bytes(Image.fromarray(rgba), "PNG"), 8, 4, Limits()).pixels
    np.testing.assert_array_equal(found, rgba)
    clear = np.zeros((8, 8, 4), np.uint8)  # nothing is there: white, as in colour
    white = decode_raster(_bytes(Image.fromarray(clear), "PNG"), 8, 1, Limits()).pixels
    np.testing.assert_array_equal(white, 255)


def test_a_picture_that_shrinks_is_averaged_in_its_own_bits():
    found = decode_raster(_npy(np.repeat(np.repeat(WIDE, 4, 0), 4, 1)), 20, 1, Limits()).pixels
    assert np.abs(found[1:-1, 1:-1, 0].astype(int) - WIDE[1:-1, 1:-1]).max() <= 1


def _lying_npy(shape):
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (63 - (10 + len(header)) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header


def _tiff(tags, data=b"\0" * 64):
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + b"\0" * 4 + data


SMALL = {256: 2, 257: 2, 258: 16, 277: 1, 273: 150, 278: 2, 279: 8, 339: 1}
BOMB = zlib.compress(b"\0" * 2**20)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"hello", "is no picture by its first bytes"),
        (_npy(np.zeros((2, 3, 4), np.uint8)), "has 4 channels, not 1"),
        (_npy(np.zeros((2, 2))), "holds float64, for which the column needs a `range`"),
        (_npy(np.zeros(3, np.uint8)), r"shape \[3\]; wanted \[H, W\]"),
        (_npy(np.zeros((0, 4), np.uint8)), "no picture"),
        (_npy(np.array([["a"]])), "no numbers"),
        (_lying_npy((10**6, 10**6)), "over the limit of"),
        (_lying_npy((2, 2, 10**9)), "wanted"),
        (_lying_npy((20, 20)), "."),
        (_tiff(SMALL)[:20], "."),
        (_tiff({**SMALL, 256: 10**5, 257: 10**5}), "over the limit of"),
        (_tiff({**SMALL, 257: 0}), "size of 0 pixels"),
        (_tiff({**SMALL, 273: 10**6}), "is cut short"),
        (_tiff({**SMALL, 277: 10**6}), "1000000 bands, more than 512"),
        (_tiff({**SMALL, 322: 10**6, 323: 10**6, 324: 0, 325: 1}), "tiles without bound"),
        (_tiff({**SMALL, 278: 1}), "another number of strips"),
    ],
)
def test_hostile_and_foreign_files_have_a_reason(content, message):
    with pytest.raises(Unreadable, match=message) as error:
        decode_raster(content, 4, 1, Limits())
    assert "\n" not in str(error.value)


def test_what_is_deflated_is_read_to_its_size_and_no_further():
    tags = {**SMALL, 259: 8, 279: len(BOMB)}
    at = 8 + 2 + 12 * len(tags) + 4
    found = decode_raster(_tiff({**tags, 273: at}, BOMB), 2, 1, Limits())
    np.testing.assert_array_equal(found.pixels, np.zeros((2, 2, 1), np.uint16))
    with pytest.raises(Unreadable, match="is cut short"):
        wide = {**tags, 273: at, 256: 2000, 257: 2000, 278: 2000}
        decode_raster(_tiff(wide, BOMB), 2, 1, Limits())


def test_infinity_is_no_picture():
    for bad in (np.nan, np.inf):
        with pytest.raises(Unreadable, match="not-a-number or infinity"):
            decode_raster(_npy(np.full((2, 2), bad)), 2, 1, Limits(), ranged=True)


def _table(folder, decoded=False, **options):
    """Depth as 16-bit PNG, bands as `.npy` and TIFF, a scan in grey; one file is bad."""
    rng, rows = np.random.default_rng(0), []
    for i in range(10):
        depth = rng.integers(0, 5000, (9, 12), np.uint16)
        Image.fromarray(depth).save(folder / f"d{i}.png")
        np.save(folder / f"b{i}.npy", rng.uniform(0, 1, (8, 8, 5)).astype(np.float32))
        rows.append({"id": str(i), "depth": f"d{i}.png", "bands": f"b{i}.npy", "kind": "ab"[i % 2]})
    rows[3]["bands"] = None
    (folder / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    depth = {"kind": "image", "size": 12, "channels": 1, "range": [0, 5000]}
    bands = {"kind": "image", "size": 8, "channels": 5, "range": [0, 1]}
    return {
        "kind": "manifest",
        "path": str(folder / "t.jsonl"),
        "modalities": {"depth": depth, "bands": {**bands, **options}},
        "targets": {"kind": "class"},
        "split": {"train": 0.6, "validation": 0.2, "test": 0.2},
        "decoded": decoded,
    }


def _first(source):
    return next(source.batches("train", 4))


def test_batches_hold_every_size_and_channel_and_shards_the_same(tmp_path):
    plain = data.build(_table(tmp_path))
    assert plain.spec.modalities["depth"] == Modality("image", (12, 12, 1), "float32")
    assert plain.spec.modalities["bands"] == Modality("image", (8, 8, 5), "float32")
    batch = _first(plain)
    plain.spec.check(batch)
    source = data.build(_table(tmp_path, str(tmp_path / "shards")))
    source.prepare()
    for name in ("depth", "bands"):
        entry = batch["inputs"][name]
        np.testing.assert_array_equal(_first(source)["inputs"][name]["x"], entry["x"])
        assert np.abs(entry["x"]).max() <= 1
    row = int(batch["id"][0])
    file = np.asarray(Image.open(tmp_path / f"d{row}.png")).astype(np.float64)
    got = batch["inputs"]["depth"]["x"][0, 1:10, :, 0]
    np.testing.assert_allclose(got, file / 2500 - 1, atol=1e-6)
    dtypes = [json.loads(p.read_text()) for p in (tmp_path / "shards").rglob("*.json")]
    kept = {record["dtype"] for index in dtypes for record in index["records"].values()}
    assert kept == {"uint16", "float32"}
    at = data.build(_table(tmp_path)).picture(row)
    assert at.shape == (12, 12, 3)
    assert at.dtype == np.uint8
    assert parts.sheet(source, batch) is not None


def test_wrong_ranges_and_channels_are_refused(tmp_path):
    for wrong, message in (
        ({"range": [1, 0]}, r"bands.range: \[1, 0\] is not a lower end"),
        ({"range": [1]}, r"bands.range: \[1\] is not a lower end"),
        ({"channels": 0}, "bands.channels: 0 is not"),
        ({"channels": 513}, "bands.channels: 513 is not"),
    ):
        with pytest.raises(ConfigError, match=message):
            data.build(_table(tmp_path, **wrong))


def test_prediction_reads_a_file_as_training_does(tmp_path):
    source = data.build(_table(tmp_path))
    batch = _first(source)
    row = int(batch["id"][0])
    for name, file, span in (("depth", f"d{row}.png", (0, 5000)), ("bands", f"b{row}.npy", (0, 1))):
        entry = read_image(tmp_path / file, source.spec.modalities[name], span)
        if batch["inputs"][name]["present"][0]:
            np.testing.assert_array_equal(entry["x"][0], batch["inputs"][name]["x"][0])
    with pytest.raises(ConfigError, match=r"image: cannot read .*: has 5 channels, not 1"):
        read_image(tmp_path / f"b{row}.npy", source.spec.modalities["depth"], (0, 1))


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_any_channels_are_seen_and_shown(channels):
    rng = np.random.default_rng(0)
    x = rng.uniform(-0.1, 0.1, (6, 6, channels)).astype(np.float32)
    seen = colours(x)
    assert (seen.shape, seen.dtype) == ((6, 6, 3), np.uint8)
    if channels != 3:
        assert seen.min() == 0  # a narrow range is stretched
        assert seen.max() == 255
    assert colours(np.zeros((4, 4, channels))).shape == (4, 4, 3)
    modality = Modality("image", (6, 6, channels), "float32")
    example = Example("depth", modality, x)
    assert "data:image/png" in kind_of(modality).show(example)


def test_colours_are_jittered_of_three_channels_only():
    spec = Spec({"depth": Modality("image", (8, 8, 1), "float32")}, {})
    with pytest.raises(ConfigError, match="color is for 3 channels.* has 1: leave it out"):
        augmenter({"depth": "crop(1)|color"}, spec)
    augmenter({"depth": "crop(1)|flip|cut_out|noise"}, spec)


BANDS = Modality("image", (16, 16, 5), "float32")
IMAGES = [kind for kind, row in ENCODERS.items() if row.accepts(BANDS)]


@pytest.mark.parametrize("kind", IMAGES)
def test_encoders_of_pictures_take_any_channels(kind):
    module = registry.build(ENCODERS, kind, where="t", width=8, modality="image", vocabulary=0)
    entry = Spec({"image": BANDS}, {}).example(2)["inputs"]["image"]
    shapes = jax.eval_shape(module.init, jax.random.key(0), entry)
    assert jax.eval_shape(module.apply, shapes, entry).values.shape[-1] == 8


def test_the_spread_of_imagenet_is_of_three_channels():
    entry = Spec({"x": Modality("image", (16, 16, 1), "float32")}, {}).example(1)["inputs"]["x"]
    config = {"kind": "cnn", "pixels": "imagenet"}
    module = registry.build(ENCODERS, config, where="t", width=8)
    with pytest.raises(ConfigError, match="'imagenet' is of red, green and blue.* 1 channels"):
        jax.eval_shape(module.init, jax.random.key(0), entry)
