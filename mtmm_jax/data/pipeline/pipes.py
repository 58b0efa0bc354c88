"""Pipes: what is done to a modality between the files and the batch, written as one string.

    pipe("decode|resize(36)|random_crop(32)|flip|normalize(half)", Form("image_file"))

Stages are rows of `TRANSFORMS`, separated by `|`, with arguments by position or by name. A pipe is
checked whole when it is built: names, arguments, and that each stage takes what the one before it
gives. Random stages take their numbers from the example's row of `chance`; without one they are
left out, or replaced by what is not random (`random_crop` by the centre).
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mtmm_jax.batch import Modality
from mtmm_jax.data.transforms import TRANSFORMS, Form, Stage
from mtmm_jax.ranges import hints_of, mismatch
from mtmm_jax.registry import ConfigError, check, choose

_CALL = re.compile(r"\s*([A-Za-z_]\w*)\s*(?:\(([^()|]*)\))?\s*(?=\||$)")
_ARGUMENT = re.compile(r"\s*(?:([A-Za-z_]\w*)\s*=)?\s*([\w.+-]+)\s*")


OF_TOKENIZERS = ("vocabulary", "padding", "unknown")  # fields of a form


@dataclasses.dataclass(frozen=True)
class Call:
    """`name(1, key=2)` and where it stands: "character 9, `name(1, key=2)`"."""

    name: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    place: str


def parse(text: str, where: str) -> tuple[Call, ...]:
    """The stages of a pipe, their names and arguments not yet checked."""
    calls, at = [], 0
    while True:
        found = _CALL.match(text, at)
        rest = text[at:].split("|")[0].strip()
        if not found:
            raise ConfigError(
                f"{where}: character {at + 1} of {text!r}: cannot read {rest or 'nothing'!r}; "
                "wanted a transform such as flip or resize(32), and | between two of them"
            )
        place = f"character {found.start(1) + 1}, `{rest}`"
        args, kwargs = _arguments(found[2] or "", f"{where}: {place}")
        calls.append(Call(found[1], args, kwargs, place))
        at = found.end() + 1
        if at > len(text):
            return tuple(calls)


def _arguments(text: str, where: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    args, kwargs = [], {}
    for part in text.split(",") if text.strip() else ():
        found = _ARGUMENT.fullmatch(part)
        if not found:
            raise ConfigError(f"{where}: cannot read the argument {part.strip()!r}")
        key, value = found[1], _value(found[2])
        if key is None and kwargs:
            raise ConfigError(f"{where}: {value!r} without a name after one with a name")
        if key in kwargs:
            raise ConfigError(f"{where}: {key} is given twice")
        if key is None:
            args.append(value)
        else:
            kwargs[key] = value
    return tuple(args), kwargs


def _value(word: str) -> Any:
    for read in (int, float):
        try:
            return read(word)
        except ValueError:
            continue
    return {"true": True, "false": False, "none": None}.get(word.lower(), word)


def bind(call: Call, function: Callable[..., Any], where: str, skip: int) -> dict[str, Any]:
    """The arguments of a call by name, of the types that the function's annotations ask for.

    Args:
        skip: how many of the function's first parameters are not the user's.
    """
    where = f"{where}: {call.place}"
    accepted = list(inspect.signature(function).parameters.values())[skip:]
    names = [parameter.name for parameter in accepted]
    if len(call.args) > len(names):
        takes = ", ".join(names) or "no arguments"
        raise ConfigError(f"{where}: {call.name} takes {takes}; {len(call.args)} were given")
    given = dict(zip(names, call.args, strict=False))
    for key, value in call.kwargs.items():
        choose(key, names, where, f"argument of {call.name}")
        if key in given:
            raise ConfigError(f"{where}: {key} is given twice")
        given[key] = value
    empty = inspect.Parameter.empty
    missing = [p.name for p in accepted if p.default is empty and p.name not in given]
    if missing:
        raise ConfigError(f"{where}: {call.name} needs {', '.join(missing)}")
    hints = hints_of(function)
    return {
        key: _as_float(check(value, hints[key], f"{where}: {key}"), hints[key])
        for key, value in given.items()
    }


def _as_float(value: Any, hint: Any) -> Any:
    """A whole number as a float where the function takes floats."""
    return float(value) if type(value) is int and not mismatch(float(value), hint) else value


@dataclasses.dataclass(frozen=True)
class Pipe:
    """Stages in a row; made by `pipe`.

    Attributes:
        text: as it was written.
        start: the form of what comes in.
        stages: what is done.
        state: stage number -> what that stage learned of the train split, as strings to keep.
        where: the place in the config.
    """

    text: str
    start: Form
    stages: tuple[Stage, ...]
    state: Mapping[int, str] = dataclasses.field(default_factory=dict)
    where: str = "pipe"

    @property
    def out(self) -> Form:
        """The form of what comes out."""
        return self.stages[-1].out if self.stages else self.start

    @property
    def draws(self) -> int:
        """The number of random numbers an example takes."""
        return sum(stage.draws for stage in self.stages)

    @property
    def unfitted(self) -> bool:
        """Whether a stage has yet to see the train split."""
        return any(stage.apply is None for stage in self.stages)

    def fit(self, values: Sequence[Any]) -> Pipe:
        """Ready to run, having seen the train split's examples, none of them absent."""
        fitted = self
        for i, stage in enumerate(self.stages):
            if stage.apply is None:
                before = dataclasses.replace(fitted, stages=fitted.stages[:i])
                fitted = fitted.restore({**fitted.state, i: stage.fit(before.run(values, None)[0])})
        return fitted

    def restore(self, state: Mapping[int, str]) -> Pipe:
        """With what its stages learned at another time."""
        stages = list(self.stages)
        for i, kept in state.items():
            stages[i] = stages[i].load(kept)
        known: dict[str, Any] = {}
        for i, stage in enumerate(stages):  # stages after a tokenizer learn the size of its table
            if stage.out.vocabulary:
                known = {key: getattr(stage.out, key) for key in OF_TOKENIZERS}
            stages[i] = dataclasses.replace(stage, out=dataclasses.replace(stage.out, **known))
        return dataclasses.replace(self, stages=tuple(stages), state=dict(state))

    def run(self, values: Any, chance: np.ndarray | None) -> tuple[Any, np.ndarray | None]:
        """Examples, none of them absent, through all stages.

        Args:
            values: a list of them, or an array where they agree in shape.
            chance: `[B, draws]`, or None for evaluation.

        Returns:
            Their array (a list as long as shapes differ), and the mask or None.
        """
        x, mask, at = values, None, 0
        if self.start.stacks and not isinstance(x, np.ndarray):
            x = np.stack(x)
        for stage in self.stages:
            u = None if chance is None else chance[:, at : at + stage.draws]
            at += stage.draws
            do = stage.plain if u is None and stage.draws else stage.apply
            if do is not None:
                x = _through(stage, do, x, u)
            if stage.masks:
                x, masks = zip(*x, strict=True)
                mask = np.stack(masks)
            if stage.out.stacks and not isinstance(x, np.ndarray):
                x = np.stack(x)
        return x, mask

    def entry(self, values: Sequence[Any], chance: np.ndarray | None) -> dict[str, np.ndarray]:
        """`{"x", "present", "mask"?}` of a batch; `None` among the values is an absent example."""
        form = self.out
        present = np.array([value is not None for value in values])
        x = np.zeros((len(values), *form.shape), form.dtype)
        mask = np.zeros(x.shape[:2], bool)
        if present.any():
            kept = [value for value in values if value is not None]
            u = None if chance is None else chance[present]
            real, found = self.run(kept, u)
            if form.is_a("text"):
                found = real != form.padding
            if found is not None:
                mask[present] = found
                real = np.where(found.reshape(found.shape + (1,) * (real.ndim - 2)), real, 0)
            if present.all():
                x = real
            else:
                x[present] = real
        entry = {"x": np.ascontiguousarray(x, form.dtype), "present": present}
        return {**entry, "mask": mask} if form.masked or form.is_a("text") else entry

    def modality(self) -> Modality:
        """The `Modality` of the output, as a model needs it."""
        form = self.out
        return Modality(form.stage, form.shape, form.dtype, form.vocabulary, form.rate, form.names)

    def to_dict(self) -> dict[str, Any]:
        """JSON from which `from_dict` makes it again, without the data that it was fitted to."""
        state = {str(i): kept for i, kept in self.state.items()}
        return {"text": self.text, "start": self.start.to_dict(), "state": state}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any], where: str = "pipe") -> Pipe:
        state = {int(i): kept for i, kept in value["state"].items()}
        return pipe(value["text"], Form.from_dict(value["start"]), where).restore(state)


def _through(stage: Stage, do: Callable[[Any, Any], Any], x: Any, u: np.ndarray | None) -> Any:
    """One stage over a batch: at once where it is one array, else an example at a time."""
    rows = [None] * len(x) if u is None else u
    if stage.each:
        return [do(example, row) for example, row in zip(x, rows, strict=True)]
    if isinstance(x, np.ndarray) or not isinstance(x[0], np.ndarray):
        return do(x, u)
    return [
        do(example[None], None if u is None else row[None])[0]
        for example, row in zip(x, rows, strict=True)
    ]


def pipe(text: str, start: Form, where: str = "pipe", tokenizer: str | None = None) -> Pipe:
    """Builds and checks a pipe whose examples come in as `start`. It must end in a modality.

    Args:
        text: as it was written.
        start: what comes in.
        where: the place in the config.
        tokenizer: a `tokenizer.json` for the stage that makes tokens, instead of a trained one.
    """
    form, stages, state = start, [], {}
    for call in parse(text, where) if text.strip() else ():
        at = f"{where}: {call.place}"
        transform = TRANSFORMS[choose(call.name, TRANSFORMS, at, "transform")]
        if not form.is_a(*transform.takes):
            fitting = sorted(name for name, row in TRANSFORMS.items() if form.is_a(*row.takes))
            raise ConfigError(
                f"{at}: {call.name} takes {' or '.join(transform.takes)}, and here comes {form}; "
                f"what takes it: {', '.join(fitting) or 'nothing'}"
            )
        arguments = bind(call, transform.build, where, skip=2)
        stage = transform.build(form, at, **arguments)
        if tokenizer is not None and stage.fit is not None and stage.out.is_a("text"):
            stage, state[len(stages)] = stage.load(tokenizer), tokenizer
        stages.append(stage)
        form = stage.out
    _check_end(form, text, where)
    return Pipe(text, start, tuple(stages), state, where)


_ENDS = {
    "image_file": "decode",
    "audio_file": "decode, resample and fit",
    "sound": "resample and fit",
    "string": "tokenize",
}


def _check_end(form: Form, text: str, where: str) -> None:
    missing = _ENDS.get(form.stage)
    if not missing and None in form.shape:
        missing = "resize or random_crop" if form.is_a("image") else "fit"
    if not missing and form.is_a("image") and form.dtype != "float32":
        missing = "normalize"
    if missing:
        raise ConfigError(f"{where}: {text!r} ends in {form}; a model needs {missing} after it")
