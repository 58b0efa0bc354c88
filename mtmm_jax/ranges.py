"""Types with ranges, declared where a hyper-parameter is defined and checked before it is used.

    def huber(*, delta: Positive = 1.0): ...

    mismatch(-1.0, Positive)   # "a number above 0"
    mismatch(0.5, Positive)    # None

A whole number is never taken for `True` nor `2.0` for a whole number; NaN and infinity are no
numbers. Hints may be unions, `Literal`, lists, tuples and mappings of these; what a hint does not
say (classes of other libraries, callables) is not checked.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import functools
import math
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

_FLOAT32 = 3.4028234663852886e38
_INT32 = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`; `above` and `below` leave out the ends themselves."""

    low: float
    high: float
    above: bool = False
    below: bool = False

    def holds(self, value: float) -> bool:
        over = value > self.low if self.above else value >= self.low
        return over and (value < self.high if self.below else value <= self.high)

    def __str__(self) -> str:
        low, high = (f"{end:,}" if isinstance(end, int) else f"{end:g}" for end in self._ends)
        if self.high >= _INT32:
            if self.low <= -_FLOAT32:
                return ""
            return f" above {low}" if self.above else f" from {low} upwards"
        if not (self.above or self.below):
            return f" from {low} to {high}"
        lower = f" above {low}" if self.above else f" from {low}"
        return lower + (f", below {high}" if self.below else f", up to {high}")

    @property
    def _ends(self) -> tuple[float, float]:
        return self.low, self.high


@dataclasses.dataclass(frozen=True)
class Pattern:
    """A text that `re.compile` takes."""


Count = Annotated[int, Range(1, _INT32)]
Natural = Annotated[int, Range(0, _INT32)]
Size = Annotated[int, Range(1, 2**20)]
"""Of an axis; what all sizes together need is estimated before anything is allocated."""
TextLength = Annotated[int, Range(1, 2**16)]
"""Tokens that a text is cut or filled up to."""
ShortText = Annotated[int, Range(1, 2**12)]
"""Tokens of texts that are all held in memory."""
SizeOrZero = Annotated[int, Range(0, 2**20)]
Layers = Annotated[int, Range(1, 512)]
"""How often something is traced: blocks, experts, iterations."""
Blocks = Annotated[int, Range(1, 64)]
"""Of a network, one behind the other or side by side: each is traced several times."""
Several = Annotated[int, Range(2, 64)]
LayersOrZero = Annotated[int, Range(0, 64)]

Beam = Annotated[int, Range(1, 1024)]
"""Sequences that a search keeps."""
Bits = Annotated[int, Range(2, 8)]
Real = Annotated[float, Range(-_FLOAT32, _FLOAT32)]
NonNegative = Annotated[float, Range(0, _FLOAT32)]
Positive = Annotated[float, Range(0, _FLOAT32, above=True)]
Share = Annotated[float, Range(0, 1)]
PositiveShare = Annotated[float, Range(0, 1, above=True)]
Decay = Annotated[float, Range(0, 1, below=True)]
"""Dropout rates and decays of averages: 1 would leave nothing, or never change."""
Correlation = Annotated[float, Range(-1, 1)]
Cosine = Annotated[float, Range(-1, 1, above=True, below=True)]
Between = Annotated[float, Range(0, 1, above=True, below=True)]

Seconds = Annotated[float, Range(0, 86_400, above=True)]
Rate = Annotated[int, Range(1, 2**20)]
"""Samples a second."""
Side = Annotated[int, Range(1, 2**14)]
"""Pixels of a picture."""
Margin = Annotated[int, Range(0, 2**14)]
Threads = Annotated[int, Range(0, 1024)]
SplitSizes = tuple[Count, Count, Count]
"""Rows of train, validation and test."""

Bytes = Annotated[int, Range(1, 2**53)]

Utterance = Annotated[float, Range(0, 60, above=True)]
"""Seconds of a short recording, all of which are held in memory."""

Dtype = Literal["float32", "bfloat16"]
Regex = Annotated[str, Pattern()]
Regexes = Regex | Sequence[Regex]
Entry = str | Mapping[str, Any]
"""An entry of a table: its name, or a section with `kind`."""


def mismatch(value: Any, hint: Any) -> str | None:
    """A description of the values that `hint` accepts, where `value` is not one; None where it
    is."""
    found = located(value, hint)
    return None if found is None else found[2]


def located(value: Any, hint: Any, at: str = "") -> tuple[str, Any, str] | None:
    """The first part of `value` that is not what `hint` wants: its place, such as `[0].rate`, the
    part and what is wanted; None where all is well."""
    if _fits(value, hint):
        return None
    for key, part, wanted in _parts(value, hint):
        if (inner := located(part, wanted, f"{at}{key}")) is not None:
            return inner
    return at, value, describe(hint)


def _parts(value: Any, hint: Any) -> Iterator[tuple[str, Any, Any]]:
    """The members of a list or mapping, where the hint has one form for such."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        kinds = (_SEQUENCES, _MAPPINGS)
        form = kinds[0] if isinstance(value, list | tuple) else kinds[1]
        fitting = [one for one in typing.get_args(hint) if typing.get_origin(one) in form]
        if len(fitting) == 1 and (is_section(value) or isinstance(value, list | tuple)):
            yield from _parts(value, fitting[0])
        return
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in _SEQUENCES and isinstance(value, list | tuple):
        fixed = origin is tuple and arguments[-1] is not ...
        if fixed and len(arguments) != len(value):
            return
        hints = arguments if fixed else [arguments[0]] * len(value)
        yield from (
            (f"[{i}]", part, one) for i, (part, one) in enumerate(zip(value, hints, strict=True))
        )
    elif origin in _MAPPINGS and is_section(value):
        key, item = arguments
        for name, part in value.items():
            yield f".{name}", name, key
            yield f".{name}", part, item


_SEQUENCES = (tuple, list, collections.abc.Sequence, collections.abc.Iterable)
_MAPPINGS = (dict, collections.abc.Mapping)


def _fits(value: Any, hint: Any) -> bool:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _fits(value, arguments[0]) and all(_holds(m, value) for m in arguments[1:])
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, one) for one in arguments)
    if origin is Literal:
        return any(type(value) is type(one) and value == one for one in arguments)
    if hint in (None, type(None)):
        return value is None
    if hint in _PLAIN:
        return _PLAIN[hint](value)
    if origin in _SEQUENCES:
        return _fits_sequence(value, origin, arguments)
    if hint in (tuple, list, Sequence):
        return isinstance(value, list | tuple)
    if origin in _MAPPINGS:
        key, item = arguments
        return is_section(value) and all(_fits(k, key) and _fits(v, item) for k, v in value.items())
    if hint in (dict, Mapping):
        return is_section(value)
    return True


def is_section(value: Any) -> bool:
    """A mapping, or a `ConfigDict`, which is none."""
    return isinstance(value, Mapping) or (hasattr(value, "items") and hasattr(value, "keys"))


def _fits_sequence(value: Any, origin: Any, arguments: Sequence[Any]) -> bool:
    if not isinstance(value, list | tuple):
        return False
    if origin is tuple and not (len(arguments) == 2 and arguments[1] is ...):
        return len(value) == len(arguments) and all(map(_fits, value, arguments))
    return all(_fits(one, arguments[0]) for one in value)


_PLAIN: dict[Any, Callable[[Any], bool]] = {
    Any: lambda value: True,
    bool: lambda value: isinstance(value, bool),
    int: lambda value: isinstance(value, int) and not isinstance(value, bool),
    float: lambda value: (
        isinstance(value, int | float) and not isinstance(value, bool) and _finite(value)
    ),
    str: lambda value: isinstance(value, str),
}


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number that no float holds
        return False


def _holds(rule: Any, value: Any) -> bool:
    if isinstance(rule, Range):
        return rule.holds(value)
    if isinstance(rule, Pattern):
        try:
            re.compile(value)
        except (re.error, RecursionError, OverflowError):
            return False
    return True


def describe(hint: Any) -> str:
    """A hint in words, such as `a number from 0 to 1, or None`."""
    return ", or ".join(_words(hint))


def _words(hint: Any) -> Iterator[str]:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        for one in arguments:
            yield from _words(one)
    elif origin is Annotated:
        ranges = "".join(str(rule) for rule in arguments[1:] if isinstance(rule, Range))
        if any(isinstance(rule, Pattern) for rule in arguments[1:]):
            yield "a regular expression"
        else:
            yield _noun(arguments[0]) + ranges
    elif origin is Literal:
        yield f"one of {', '.join(map(repr, arguments))}"
    elif origin is tuple and not (len(arguments) == 2 and arguments[1] is ...):
        each = list(dict.fromkeys(map(describe, arguments)))
        words = f", each {each[0]}" if len(each) == 1 else f": {', '.join(each)}"
        yield f"a list of {len(arguments)}{words}"
    elif origin in _SEQUENCES:
        yield f"a list, each {describe(arguments[0])}"
    elif origin in _MAPPINGS:
        item = arguments[1]
        yield "a section" if item is Any else f"a section whose values are {describe(item)}"
    else:
        yield _noun(hint)


def _noun(hint: Any) -> str:
    nouns = {int: "a whole number", float: "a number", str: "a text", bool: "True or False"}
    nouns |= {type(None): "None", None: "None", tuple: "a list", list: "a list", dict: "a section"}
    return nouns.get(hint) or getattr(hint, "__name__", str(hint))


@functools.lru_cache(maxsize=4096)
def hints_of(constructor: Any) -> Mapping[str, Any]:
    """The type of each parameter of a function or field of a class; of none that cannot be read."""
    while isinstance(constructor, functools.partial):
        constructor = constructor.func
    try:
        return typing.get_type_hints(constructor, include_extras=True)
    except (NameError, TypeError, AttributeError):
        return {}
