"""Properties of every transform of the table, for every stage that it takes."""

import copy
import inspect
import io

import numpy as np
import pytest
import soundfile
from PIL import Image

from mtmm_jax.data.pipeline.pipes import Pipe, pipe
from mtmm_jax.data.transforms import TRANSFORMS, Form
from mtmm_jax.modalities import MODALITIES
from mtmm_jax.registry import ConfigError

COUNT = 5
GIVEN = {"rate": 8000}  # arguments without a default; any other one is 4
BEFORE = {  # stages that another one makes: from what, and how
    "sound": ("audio_file", "decode"),
    "audio": ("audio_file", "decode|resample(8000)|fit(0.1)"),
    "text": ("string", "tokenize(6)"),
}


def _file(write, *arguments, **options):
    out = io.BytesIO()
    write(out, *arguments, **options)
    return out.getvalue()


def _raw(stage):
    """A form and examples of it, each different."""
    rng = np.random.default_rng(0)
    if stage == "image_file":
        pictures = [rng.integers(0, 256, (12 + i, 10, 3), np.uint8) for i in range(COUNT)]
        return Form(stage), [_file(Image.fromarray(x).save, format="PNG") for x in pictures]
    if stage == "audio_file":
        waves = [rng.uniform(-0.5, 0.5, 1600 + 100 * i) for i in range(COUNT)]
        return Form(stage), [_file(soundfile.write, w, 8000, format="WAV") for w in waves]
    if stage == "string":
        return Form(stage), ["A small CAT", "", "two  Dogs", "é", "cat dog bird cat dog bird cat"]
    if stage == "image":
        pictures = rng.integers(0, 256, (COUNT, 12, 10, 3), np.uint8)
        return Form(stage, pictures.shape[1:], "uint8", low=0.0, high=255.0), list(pictures)
    shape = (7, 6, 5)[: MODALITIES[stage].dimensions]
    values = rng.uniform(-1, 1, (COUNT, *shape)).astype(np.float32)
    return Form(stage, shape, "float32"), list(values)


def _examples(stage):
    origin, text = BEFORE.get(stage, (stage, None))
    form, values = _raw(origin)
    if text is None:
        return form, values
    if stage == "sound":
        made = TRANSFORMS["decode"].build(form, "before")
        first = Pipe(text, form, (made,))
    else:
        first = pipe(text, form).fit(values)
    found, masks = first.run(values, None)
    del masks
    return first.stages[-1].out, list(found)


CASES = [(name, stage) for name, row in TRANSFORMS.items() for stage in row.takes]


def _pipe(name, stage):
    """A pipe of that one transform, fitted, and examples for it."""
    form, values = _examples(stage)
    parameters = list(inspect.signature(TRANSFORMS[name].build).parameters.values())[2:]
    given = {p.name: GIVEN.get(p.name, 4) for p in parameters if p.default is p.empty}
    try:
        made = TRANSFORMS[name].build(form, name, **given)
    except ConfigError:  # for pictures of floats
        floats = pipe("to_float|normalize", form)
        form, values = floats.out, list(floats.run(values, None)[0])
        made = TRANSFORMS[name].build(form, name, **given)
    return Pipe(name, form, (made,)).fit(values), values


def _same(one, other):
    if isinstance(one, str | bytes):
        assert one == other
    elif isinstance(one, tuple):  # a sound and its rate
        for a, b in zip(one, other, strict=True):
            _same(a, b)
    else:
        np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.parametrize(("name", "stage"), CASES)
def test_what_comes_out_is_what_its_form_says(name, stage):
    made, values = _pipe(name, stage)
    out = made.stages[-1].out
    found, _ = made.run(values, None)
    assert len(found) == COUNT
    if out.dtype == "object":
        return
    for example in found:
        assert np.asarray(example).dtype == out.dtype
        sizes = zip(np.shape(example), out.shape, strict=True)
        assert all(wanted in (None, size) for size, wanted in sizes)
        assert np.isfinite(example).all()


@pytest.mark.parametrize(("name", "stage"), CASES)
def test_an_example_is_the_same_alone_in_any_order_and_twice(name, stage):
    made, values = _pipe(name, stage)
    kept = copy.deepcopy(values)
    chance = np.random.default_rng(1).random((COUNT, made.draws)).astype(np.float32)
    for u in (None, chance):
        whole, _ = made.run(values, u)
        again, _ = made.run(values, u)
        back = made.run(values[::-1], None if u is None else u[::-1])[0][::-1]
        for i in range(COUNT):
            alone, _ = made.run(values[i : i + 1], None if u is None else u[i : i + 1])
            for other in (again[i], back[i], alone[0]):
                _same(whole[i], other)
    for one, other in zip(kept, values, strict=True):
        _same(one, other)
