"""What single encoders promise beyond the properties of all in tests/benchmarks/test_blocks.py."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from mtmm_jax import layers, model, registry
from mtmm_jax.batch import clean
from mtmm_jax.encoders import ENCODERS, audio
from mtmm_jax.registry import ConfigError, parameters
from tests import toy
from tests.made_up import packaged


def _build(config, name="image"):
    modality = toy.SPEC.modalities[name]
    return registry.build(
        ENCODERS,
        config,
        where="test",
        width=16,
        modality=name,
        vocabulary=modality.vocabulary,
        rate=modality.rate,
        shape=modality.shape,
    )


def _first_modality(kind):
    return next(n for n, m in toy.SPEC.modalities.items() if ENCODERS[kind].accepts(m))


@pytest.mark.parametrize("kind", sorted(set(packaged(ENCODERS)) - {"video_frames", "pretrained"}))
def test_unknown_presets_and_dtypes_are_refused(kind):
    name = _first_modality(kind)
    entry = toy.SPEC.example(1)["inputs"][name]
    fields = dict.fromkeys({"preset"} & set(parameters(ENCODERS[kind])), "huge")
    for field, value in {**fields, "dtype": "float8"}.items():
        with pytest.raises(ConfigError, match=f"{field}: .*'{value}'.*(choices|one of)"):
            module = _build({"kind": kind, field: value}, name=name)
            jax.eval_shape(module.init, jax.random.key(0), entry)


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("image", {"kind": "vit", "patch": 5}, "vit.patch: 5 pixels do not divide .* 16 x 16"),
        ("video", {"kind": "video_tubelets", "patch": 5}, "video_tubelets.patch: 5 pixels"),
        ("image", {"kind": "perceiver", "patch": 5}, "perceiver.patch: 5 pixels do not divide"),
        ("image", {"kind": "vit", "position_kind": "none"}, "vit.position_kind: unknown"),
        ("image", {"kind": "cnn", "norm": "layer"}, "cnn.norm: unknown norm 'layer'"),
        ("image", {"kind": "resnet", "pixels": "raw"}, "resnet.pixels: .*: imagenet, plain"),
        ("image", {"kind": "cnn", "pixels": "raw"}, "cnn.pixels: .*: imagenet, plain"),
        ("text", {"kind": "text_gru", "embedding_width": 0}, "embedding_width: 0 is not"),
        (
            "video",
            {"kind": "video_frames", "frame": {"kind": "cnn", "projected": False}},
            "video.frame.projected: False gives 32 features, not the 128 of frame_width",
        ),
        (
            "video",
            {"kind": "video_frames", "temporal": {"kind": "gru", "projected": False}},
            "video.temporal.projected: unknown hyper-parameter of gru 'projected'",
        ),
        ("text", {"kind": "bert", "length": 5}, "bert.length: 6 tokens are more than the 5"),
        ("audio", {"kind": "audio_transformer", "bands": 7}, "7 do not divide 40 mels"),
        ("video", {"kind": "video_frames", "frame": "bert"}, "video.frame.kind: unknown kind"),
        ("video", {"kind": "video_frames", "temporal": "max"}, "video.temporal.kind: unknown"),
        (
            "video",
            {"kind": "video_frames", "frame": {"kind": "cnn", "depth": 3}},
            "video.frame.depth: unknown hyper-parameter of cnn 'depth'",
        ),
    ],
)
def test_what_does_not_fit_is_refused(name, config, message):
    entry = toy.SPEC.example(1)["inputs"][name]
    with pytest.raises(ConfigError, match=message):
        jax.eval_shape(_build(config, name=name).init, jax.random.key(0), entry)


def test_not_all_that_reads_frames_does_without_a_projection():
    config = {"kind": "video_frames", "temporal": "transformer", "projected": False}
    with pytest.raises(ConfigError, match="video.projected: False, and .* 'transformer'"):
        _build(config, name="video")


@functools.cache
def _inputs():
    return jax.device_get(jax.jit(clean)(toy.batch(holes=False)["inputs"]))


def _entry(name):
    return dict(_inputs()[name])


@pytest.mark.parametrize(
    ("name", "config", "width"),
    [
        ("image", {"kind": "resnet"}, 128),
        ("image", {"kind": "cnn", "preset": "small"}, 128),
        ("text", {"kind": "text_gru", "preset": "small", "bidirectional": False}, 256),
        ("text", {"kind": "text_gru"}, 192),
        ("series", {"kind": "series_gru", "bidirectional": False}, 96),
        ("audio", {"kind": "conv1d", "preset": "mini"}, 64),
        ("video", {"kind": "video_frames", "frame_width": 24, "temporal": "mean"}, 24),
        ("video", {"kind": "video_frames", "temporal": {"kind": "gru", "preset": "tiny"}}, 192),
    ],
)
def test_what_is_not_projected_leaves_as_it_is(name, config, width):
    module, plain = (_build({**config, "projected": p}, name=name) for p in (False, True))
    assert (module.width, plain.width) == (width, 16)
    variables = toy.variables(plain, _entry(name))
    kept = jax.tree.map(lambda x: x, variables)
    last = (kept["params"]["body"] if name == "video" else kept["params"]).pop("project")
    own = jax.eval_shape(module.init, jax.random.key(0), _entry(name))["params"]
    assert set(model.flatten(kept["params"])) == set(model.flatten(own))

    @jax.jit
    def run(kept, variables, entry):
        return module.apply(kept, entry), plain.apply(variables, entry)

    features, wanted = jax.device_get(run(kept, variables, _entry(name)))
    assert features.values.shape[-1] == width
    mask = wanted.mask
    got = features.values[mask] @ last["kernel"] + last["bias"]
    np.testing.assert_allclose(got, wanted.values[mask], rtol=2e-4, atol=2e-4)


def test_a_cnn_takes_out_the_mean_and_spread_of_imagenet():
    plain, other = (_build({"kind": "cnn", "pixels": p}) for p in ("plain", "imagenet"))
    entry = _entry("image")
    variables = toy.variables(plain, entry)
    mean, spread = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    normal = (((entry["x"] + 1) / 2 - mean) / spread).astype(np.float32)

    @jax.jit
    def run(variables, normal, entry):
        return plain.apply(variables, {**entry, "x": normal}), other.apply(variables, entry)

    wanted, got = run(variables, normal, entry)
    np.testing.assert_allclose(got.values, wanted.values, rtol=1e-4, atol=1e-4)


def test_embeddings_may_be_of_another_width_than_the_recurrence():
    config = {"kind": "text_gru", "preset": "small", "embedding_width": 12}
    module = _build({**config, "bidirectional": False}, name="text")
    params = jax.eval_shape(module.init, jax.random.key(0), _entry("text"))["params"]
    assert params["embedding"]["embedding"].shape[1] == 12
    assert params["forward"]["input"]["kernel"].shape == (12, 3 * 256)
    assert "backward" not in params


def test_a_cnn_is_its_formula():
    module, entry = _build("cnn"), _entry("image")
    variables = toy.variables(module, entry)
    x = np.asarray(entry["x"], np.float64)
    for name in ("conv1", "conv2"):
        params = variables["params"][name]
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        size = x.shape[1]
        x = params["bias"] + sum(
            padded[:, i : i + size, j : j + size] @ params["kernel"][i, j]
            for i in range(3)
            for j in range(3)
        )
        x = np.maximum(x, 0.0)
        x = np.max([x[:, i::2, j::2] for i in range(2) for j in range(2)], axis=0)
    last = variables["params"]["project"]
    tokens = jax.jit(module.apply)(variables, entry)
    np.testing.assert_allclose(tokens.grid(), x @ last["kernel"] + last["bias"], atol=1e-4)
    np.testing.assert_allclose(tokens.positions[0, :2], [[2.0, 2.0], [2.0, 6.0]])


def test_patches_are_blocks_of_the_grid():
    x = np.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3)
    cut = layers.patches(x, (2, 3))
    assert cut.shape == (2, 2, 2, 18)
    np.testing.assert_array_equal(cut[1, 0, 1], x[1, :2, 3:].reshape(-1))
    clip = np.arange(2 * 4 * 4 * 2 * 1).reshape(2, 4, 4, 2, 1)
    np.testing.assert_array_equal(
        layers.patches(clip, (2, 2, 1))[0, 1, 0, 1], clip[0, 2:, :2, 1:].reshape(-1)
    )


def test_fourier_positions_are_waves_of_growing_periods():
    features = layers.fourier(np.array([[0.0], [1.0], [4.0]], np.float32), 3, longest=8.0)
    periods = np.array([2.0, 4.0, 8.0])
    angles = 2 * np.pi * np.array([[0.0], [1.0], [4.0]]) / periods
    expected = np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)
    np.testing.assert_allclose(features, expected, atol=1e-5)


REMATS = (True, "dots", "dots_without_batch")


@functools.cache
def _bert(**config):
    """Shapes of the variables, the program of a loss's gradient, and what it gives."""
    entry, module = _entry("text"), _build({"kind": "bert", **config}, name="text")

    def loss(variables):
        keys = {"dropout": jax.random.key(1)}
        return jnp.square(module.apply(variables, entry, train=True, rngs=keys).mean()).sum()

    variables = toy.variables(module, entry)
    traced = jax.jit(jax.grad(loss)).trace(variables)
    gradient = jax.device_get(traced.lower().compile()(variables))
    return jax.tree.map(np.shape, variables), str(traced.jaxpr), gradient


def _agree(one, other):
    assert one[0] == other[0]
    for a, b in zip(jax.tree.leaves(one[2]), jax.tree.leaves(other[2]), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("remat", REMATS)
def test_rematerialised_blocks_have_the_same_parameters_and_gradients(remat):
    """Dropout draws the same again."""
    assert "remat" in _bert(remat=remat)[1]
    _agree(_bert(), _bert(remat=remat))


def test_policies_of_remat_keep_some_products_and_none_is_made_up():
    """Ordered by what the backward pass computes again: nothing, attention, all products."""
    products = {remat: _bert(remat=remat)[1].count("dot_general") for remat in REMATS}
    assert _bert()[1].count("dot_general") == products["dots"]
    assert products["dots"] < products["dots_without_batch"] < products[True]
    with pytest.raises(ConfigError, match=r"remat: .*'most'.*choices: dots, dots_without_batch"):
        toy.variables(_build({"kind": "bert", "remat": "most"}, name="text"), _entry("text"))


@pytest.mark.parametrize("remat", [False, True, "dots"])
def test_scanned_blocks_have_the_same_parameters_and_gradients(remat):
    """One block stands in the program, whatever the depth."""
    scanned = _bert(cut=0, dropout=0.0, scan=True, remat=remat)
    assert scanned[1].count("scan[") == 2  # there and back
    _agree(_bert(dropout=0.0), scanned)


def test_dropout_in_scanned_blocks_draws_anew():
    entry = _entry("text")
    noisy = _build({"kind": "bert", "cut": 0, "scan": True, "dropout": 0.5}, name="text")
    variables = toy.variables(noisy, entry)

    @jax.jit
    def run(variables, seed):
        keys = {"dropout": jax.random.key(seed)}
        return noisy.apply(variables, entry, train=True, rngs=keys).values

    assert not np.allclose(run(variables, 0), run(variables, 1))


def test_a_vit_keeps_its_registers_and_may_give_its_summary():
    entry = _entry("image")
    modules = {
        name: _build({"kind": "vit", **config})
        for name, config in {
            "registers": {"registers": 3},
            "summary": {"summary": True, "position_kind": "learned"},
        }.items()
    }
    tokens = {}
    for name, module in modules.items():
        variables, run = toy.variables(module, entry), jax.jit(module.apply)
        tokens[name] = run(variables, entry)
        own = variables["params"]["registers"]
        changed = {"params": {**variables["params"], "registers": np.cos(own)}}
        moved = run(changed, entry).values
        assert np.abs(moved - tokens[name].values).max() > 1e-3
    assert tokens["registers"].grid().shape == (8, 2, 2, 16)
    assert tokens["summary"].values.shape == (8, 1, 16)
    assert [span.name for span in tokens["summary"].layout] == ["image"]


@pytest.mark.parametrize(
    ("temporal", "frame", "count"),
    [
        ("mean", {"kind": "resnet", "stem_kind": "half"}, 1),
        ({"kind": "gru", "bidirectional": False}, {"kind": "vit", "patch": 16}, 3),
        ("transformer", "image_mlp", 3),
    ],
)
def test_a_clip_is_read_by_any_image_encoder_and_body(temporal, frame, count):
    config = ConfigDict({"kind": "video_frames", "temporal": temporal, "frame": frame})
    module, entry = _build(config, name="video"), _entry("video")
    variables, run = toy.variables(module, entry), jax.jit(module.apply)
    tokens = jax.device_get(run(variables, entry))
    assert tokens.values.shape == (8, count, 16)
    hash(module)
    # In time: the first frame is not the second one.
    swapped = {**entry, "x": entry["x"][:, [1, 0, 2]]}
    seen = entry["mask"][:, 1]
    moved = jax.device_get(run(variables, swapped))
    difference = np.abs(moved.values - tokens.values)[seen].max((1, 2))
    assert (difference < 1e-5).all() if temporal == "mean" else (difference > 1e-4).all()


def test_absent_frames_are_in_no_statistics():
    module = _build(
        {"kind": "video_frames", "frame": {"kind": "cnn", "norm": "batch"}}, name="video"
    )
    entry = _entry("video")
    variables = toy.variables(module, entry)
    loud = np.where(entry["mask"][..., None, None, None], entry["x"], 50.0).astype(np.float32)
    step = jax.jit(functools.partial(module.apply, train=True, mutable=["batch_stats"]))
    (there, stats), (back, others) = (
        jax.device_get(step(variables, {**entry, "x": x})) for x in (entry["x"], loud)
    )
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), stats, others)
    mask = np.asarray(there.mask)
    np.testing.assert_allclose(there.values[mask], back.values[mask], atol=1e-4)


def test_a_frame_of_sound_is_there_if_all_of_it_is():
    entry = _entry("audio")
    run = jax.jit(lambda mask: audio.spectrogram({**entry, "mask": mask}, 4000.0, 16))
    for samples, frames in ((1600, 24), (128 + 64, 2), (128 + 63, 1), (20, 1)):
        mask = np.broadcast_to(np.arange(1600) < samples, (8, 1600))
        x, kept = jax.device_get(run(mask))
        np.testing.assert_array_equal(kept.sum(1), frames)
        assert (x[~kept] == 0).all()


def test_models_take_encoders_of_every_modality():
    config = {**toy.MODEL, "encoders": {"video": "video_frames", "series": "perceiver"}}
    built = model.build(config, {"kind": {"kind": "classification"}}, toy.SPEC)
    assert set(built.shapes["params"]["encoders"]) == {"video", "series"}
    with pytest.raises(ConfigError, match="CNN does not read text .*; choices: text_tr.*perceiver"):
        model.build({**config, "encoders": {"text": "cnn"}}, {"kind": "classification"}, toy.SPEC)
