"""How many parameters every encoder has in every size: where an architecture changes, it shows."""

import jax
import pytest

from mtmm_jax import registry
from mtmm_jax.batch import Modality, Spec
from mtmm_jax.encoders import ENCODERS, audio, image, sequence, series, speech, text, vit
from mtmm_jax.encoders.encoder import MLPS
from mtmm_jax.encoders.fixed import FixedEncoder
from tests.made_up import packaged

# kind -> its presets
PRESETS = {
    "cnn": image.CNNS,
    "resnet": image.RESNETS,
    "vit": vit.VITS,
    "image_mlp": MLPS,
    "text_transformer": sequence.TRANSFORMERS,
    "bert": text.BERTS,
    "text_gru": sequence.GRUS,
    "text_bag": text.BAGS,
    "log_mel_cnn": audio.CNNS,
    "log_mel_gru": speech.PRESETS,
    "audio_transformer": sequence.TRANSFORMERS,
    "audio_mlp": MLPS,
    "conv1d": series.CONVS,
    "video_tubelets": vit.VITS,
    "series_gru": sequence.GRUS,
    "series_transformer": sequence.TRANSFORMERS,
    "table_mlp": MLPS,
    "table_transformer": sequence.TRANSFORMERS,
    "perceiver": sequence.TRANSFORMERS,
}
WITHOUT_PRESETS = {"video_frames", "pretrained"} | {
    kind
    for kind, row in ENCODERS.items()
    if isinstance(row, type) and issubclass(row, FixedEncoder)
}

REAL = {
    "image": Modality("image", (224, 224, 3), "float32"),
    "small_image": Modality("image", (32, 32, 3), "float32"),
    "text": Modality("text", (8,), "int32", vocabulary=30_522),
    "audio": Modality("audio", (16_000,), "float32", rate=16_000.0),
    "video": Modality("video", (8, 32, 32, 3), "float32", rate=8.0),
    "table": Modality("table", (10,), "float32"),
    "series": Modality("series", (50, 6), "float32", rate=50.0),
}


def _shapes(config, modality, name="x", width=256):
    module = registry.build(
        ENCODERS,
        config,
        where="test",
        width=width,
        modality=name,
        vocabulary=modality.vocabulary,
        rate=modality.rate,
    )
    assert module.accepts(modality)
    entry = Spec({name: modality}, {}).example(1)["inputs"][name]
    return jax.eval_shape(module.init, jax.random.key(0), entry)


def _count(*args, **kwargs):
    return sum(leaf.size for leaf in jax.tree.leaves(_shapes(*args, **kwargs)["params"]))


COUNTS = {
    ("cnn", "tiny", "small_image"): 13_536,
    ("cnn", "small", "small_image"): 108_672,
    ("cnn", "base", "small_image"): 1_682_304,
    ("resnet", "tiny", "small_image"): 340_384,
    ("resnet", "small", "small_image"): 1_292_192,
    ("resnet", "18", "small_image"): 11_300_160,
    ("resnet", "34", "small_image"): 21_408_320,
    ("resnet", "50", "small_image"): 24_024_896,
    ("vit", "tiny", "small_image"): 454_528,
    ("vit", "small", "small_image"): 21_467_008,
    ("vit", "base", "small_image"): 85_401_088,
    ("image_mlp", "tiny", "small_image"): 442_880,
    ("image_mlp", "small", "small_image"): 1_967_360,
    ("text_transformer", "tiny", "text"): 4_336_640,
    ("text_transformer", "small", "text"): 11_038_976,
    ("text_transformer", "base", "text"): 108_693_760,
    ("bert", "tiny", "text"): 4_402_432,
    ("bert", "minilm", "text"): 22_663_936,
    ("bert", "base", "text"): 109_088_512,
    ("text_gru", "tiny", "text"): 3_091_264,
    ("text_gru", "small", "text"): 8_734_464,
    ("text_bag", "tiny", "text"): 3_956_352,
    ("text_bag", "small", "text"): 16_021_248,
    ("log_mel_cnn", "tiny", "audio"): 152_880,
    ("log_mel_cnn", "small", "audio"): 585_184,
    ("log_mel_gru", "tiny", "audio"): 96_128,
    ("log_mel_gru", "small", "audio"): 586_752,
    ("log_mel_gru", "base", "audio"): 3_339_008,
    ("audio_transformer", "tiny", "audio"): 435_072,
    ("audio_transformer", "small", "audio"): 3_235_840,
    ("audio_transformer", "base", "audio"): 85_284_352,
    ("audio_mlp", "tiny", "audio"): 105_984,
    ("audio_mlp", "small", "audio"): 619_776,
    ("conv1d", "mini", "audio"): 31_168,
    ("conv1d", "tiny", "audio"): 43_584,
    ("conv1d", "small", "audio"): 403_072,
    ("video_tubelets", "tiny", "video"): 479_104,
    ("video_tubelets", "small", "video"): 21_540_736,
    ("video_tubelets", "base", "video"): 85_548_544,
    ("series_gru", "tiny", "series"): 161_824,
    ("series_gru", "small", "series"): 922_624,
    ("series_transformer", "tiny", "series"): 430_720,
    ("series_transformer", "small", "series"): 3_227_136,
    ("series_transformer", "base", "series"): 85_258_240,
    ("table_mlp", "tiny", "table"): 52_224,
    ("table_mlp", "small", "table"): 404_736,
    ("table_transformer", "tiny", "table"): 433_664,
    ("table_transformer", "small", "table"): 3_233_024,
    ("table_transformer", "base", "table"): 85_275_904,
    ("perceiver", "tiny", "small_image"): 644_864,
    ("perceiver", "small", "small_image"): 4_048_640,
    ("perceiver", "base", "small_image"): 92_441_344,
}


def test_every_preset_is_counted():
    assert set(PRESETS) | WITHOUT_PRESETS == set(packaged(ENCODERS))
    counted = {(kind, preset) for kind, preset, _ in COUNTS}
    assert counted == {(kind, preset) for kind, table in PRESETS.items() for preset in table}


@pytest.mark.parametrize(("kind", "preset", "modality"), COUNTS)
def test_parameter_count(kind, preset, modality):
    assert (
        _count({"kind": kind, "preset": preset}, REAL[modality]) == COUNTS[kind, preset, modality]
    )


@pytest.mark.parametrize(
    ("config", "modality", "width", "published"),
    [
        # torchvision's, without the classifier of 1000
        (
            {"kind": "resnet", "preset": "18", "stem_kind": "large"},
            "image",
            512,
            11_689_512 - 513_000,
        ),
        (
            {"kind": "resnet", "preset": "34", "stem_kind": "large"},
            "image",
            512,
            21_797_672 - 513_000,
        ),
        (
            {"kind": "resnet", "preset": "50", "stem_kind": "large"},
            "image",
            2048,
            25_557_032 - 2_049_000,
        ),
        # Hugging Face's, without the pooler
        ({"kind": "bert", "preset": "base"}, "text", 768, 109_482_240 - 590_592),
        ({"kind": "bert", "preset": "minilm"}, "text", 384, 22_713_216 - 147_840),
    ],
)
def test_pretrained_sizes_are_the_published_ones(config, modality, width, published):
    assert _count({**config, "projected": False}, REAL[modality], width=width) == published


def test_a_vit_has_the_published_size():
    config = {"kind": "vit", "preset": "base", "patch": 16, "position_kind": "learned"}
    ours = _count({**config, "summary": True}, REAL["image"], width=1000)
    # ViT-B/16: its class token has a position of its own.
    assert ours == 86_567_656 - 768
