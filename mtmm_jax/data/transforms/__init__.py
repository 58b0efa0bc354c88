"""`TRANSFORMS`: what a pipe may be made of. See `pipes.py` for how they are written and run."""

from mtmm_jax.data.transforms import image, numeric, sound, words
from mtmm_jax.data.transforms.stage import Form, Stage, Transform
from mtmm_jax.ranges import NonNegative, Positive
from mtmm_jax.registry import ConfigError


def decode(form: Form, where: str) -> Stage:
    """The bytes of a PNG, JPEG, WebP or GIF, or of a WAV, FLAC, OGG or MP3."""
    if form.stage == "image_file":
        return image.decode_image(form, where)
    return sound.decode_audio(form, where)


def fit(form: Form, where: str, length: Positive, late: NonNegative = 0.0) -> Stage:
    """Audio to `length` seconds, a series to `length` steps."""
    if form.is_a("series"):
        if late or length != int(length):
            raise ConfigError(f"{where}: a series takes a whole number of steps, and no `late`")
        return numeric.fit_steps(form, where, int(length))
    return sound.fit(form, where, length, late)


TRANSFORMS = {
    "decode": Transform(decode, ("image_file", "audio_file")),
    **image.TRANSFORMS,
    "resample": Transform(sound.resample, ("sound", "audio")),
    "trim": Transform(sound.trim, ("audio",)),
    "fit": Transform(fit, ("audio", "series")),
    "gain": Transform(sound.gain, ("audio",)),
    "noise": Transform(numeric.noise, ("image", "audio", "table", "series")),
    "lower": Transform(words.lower, ("string",)),
    "tokenize": Transform(words.tokenize, ("string",)),
    "token_dropout": Transform(words.token_dropout, ("text",)),
    "standardise": Transform(numeric.standardise, ("table", "series")),
    "clip": Transform(numeric.clip, ("table", "series")),
}

__all__ = ["TRANSFORMS", "Form", "Stage", "Transform"]
