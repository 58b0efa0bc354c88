"""Tables of entries built from configs, and the one error for bad input.

Every room of the house keeps a public table from name to constructor; configs name an entry by
`kind` and give its hyper-parameters next to it. `build` looks the name up, checks the
hyper-parameters against the constructor's signature, and says plainly what is wrong.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from mtmm_jax.ranges import hints_of, is_section, located


class ConfigError(ValueError):
    """Bad input from a user: names the value, its place and the choices. Commands exit with 2."""


def one_line(error: object) -> str:
    """The words of an error without line breaks and control characters, which may be data."""
    words = " ".join(str(error).split())
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in words)


def choose(value: Any, choices: Iterable[str], where: str, what: str = "value") -> Any:
    """Returns `value` if it is among `choices`, else raises a `ConfigError` that lists them."""
    choices = sorted(choices)
    if value in choices:
        return value
    close = difflib.get_close_matches(short(value).strip("'"), choices, n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    raise ConfigError(
        f"{where}: unknown {what} {short(value)}{hint}; choices: {', '.join(choices)}"
    )


def check(value: Any, hint: Any, where: str) -> Any:
    """Returns `value` if it is what a hint of `ranges` wants, else raises a `ConfigError`."""
    if (found := located(value, hint)) is not None:
        at, part, wanted = found
        shown = short(part)
        close = difflib.get_close_matches(shown.strip("'"), re.findall(r"'(.*?)'", wanted), n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise ConfigError(f"{where}{at}: {shown} is not {wanted}{hint}")
    return value


def short(value: Any) -> str:
    """A value as an error shows it, cut where it is long."""
    try:
        shown = repr(value)
    except ValueError:  # a whole number of thousands of digits
        return f"a {type(value).__name__} of too many digits"
    return shown if len(shown) <= 80 else f"{shown[:77]}..."


def check_fields(module: Any, where: str) -> None:
    """Checks every field of a part against its hint, where it is built without a config.

    Flax clones a module whenever it binds parameters to it; a clone was checked when it was made.
    """
    if type(getattr(module, "parent", None)).__name__ == "Scope":
        return
    for name, hint in hints_of(type(module)).items():
        if name not in ("name", "parent", "scope") and hasattr(module, name):
            check(getattr(module, name), hint, f"{where}.{name}")


def checked(constructor: Callable[..., Any], where: str) -> Callable[..., Any]:
    """The constructor, whose arguments are checked by their hints however it is called."""
    signature = inspect.signature(constructor)

    @functools.wraps(constructor)
    def build_checked(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs).arguments
        hints = hints_of(constructor)
        for name, value in given.items():
            check(value, hints.get(name, Any), f"{where}.{name}")
        return constructor(*args, **kwargs)

    return build_checked


def section_of(section: Any, settings: type, where: str, like: str) -> dict[str, Any]:
    """A config's section as a dict of its own, its keys the fields of a dataclass.

    Args:
        section: what the config has.
        settings: the dataclass; fields without a default must be there.
        where: the place in the config.
        like: a section as it could be, for the error.

    Raises:
        ConfigError: for what is no section, an unknown key, or one that is missing.
    """
    if not is_section(section):
        raise ConfigError(f"{where}: {short(section)} is not a section such as {like}")
    fields = {field.name: field for field in dataclasses.fields(settings)}
    for key in section:
        choose(key, fields, f"{where}.{key}", "key")
    free = (dataclasses.MISSING, dataclasses.MISSING)
    needed = [name for name, f in fields.items() if (f.default, f.default_factory) == free]
    if missing := [name for name in needed if name not in section]:
        raise ConfigError(f"{where}: needs {', '.join(missing)}")
    hints = hints_of(settings)
    for key, value in section.items():
        check(value, hints.get(key, Any), f"{where}.{key}")
    return dict(section)


def parameters(constructor: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The keyword hyper-parameters that a table entry takes (a Linen module's own fields)."""
    skip = {"self", "parent", "name"}
    return {
        key: value
        for key, value in inspect.signature(constructor).parameters.items()
        if key not in skip and value.kind is not value.VAR_POSITIONAL
    }


def entry_of(spec: str | Mapping[str, Any], where: str = "config") -> dict[str, Any]:
    """A config's entry as a dict of its own: `"mean"` is short for `{"kind": "mean"}`."""
    if not isinstance(spec, str) and not is_section(spec):
        raise ConfigError(f"{where}: {short(spec)} is neither a name nor a section with `kind`")
    return {"kind": spec} if isinstance(spec, str) else dict(spec)


def build(
    table: Mapping[str, Callable[..., Any]],
    spec: str | Mapping[str, Any],
    *args: Any,
    where: str,
    **context: Any,
) -> Any:
    """Builds the entry of `table` that `spec` names.

    Args:
        table: name -> constructor.
        spec: a name, or a mapping with `kind` and the hyper-parameters of that entry.
        *args: positional arguments every entry of the table takes.
        where: the place in the config, for error messages, such as `"model.fusion"`; an entry that
            takes it is given it.
        **context: keyword arguments that the caller, not the config, provides; an entry that does
            not take one of them is not given it.

    Raises:
        ConfigError: for an unknown kind or hyper-parameter, or a missing one.
    """
    context = {"where": where, **context}
    hyper = entry_of(spec, where)
    if "kind" not in hyper:
        raise ConfigError(f"{where}: needs a `kind`; choices: {', '.join(sorted(table))}")
    kind = choose(hyper.pop("kind"), table, f"{where}.kind", "kind")
    constructor = table[kind]
    accepted = parameters(constructor)
    open_ended = any(p.kind is p.VAR_KEYWORD for p in accepted.values())
    offered = [key for key in list(accepted)[len(args) :] if key not in context]
    for key in hyper:
        if not open_ended:
            choose(key, offered, f"{where}.{key}", f"hyper-parameter of {kind}")
    hints = hints_of(constructor)
    for key, value in hyper.items():
        check(value, hints.get(key, Any), f"{where}.{key}")
    given = {key: value for key, value in context.items() if key in accepted}
    missing = [
        key
        for key in offered
        if accepted[key].default is inspect.Parameter.empty
        and accepted[key].kind is not inspect.Parameter.VAR_KEYWORD
        and key not in hyper
    ]
    if missing:
        raise ConfigError(f"{where}: {kind} needs {', '.join(missing)}")
    try:
        return constructor(*args, **given, **hyper)
    except (TypeError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{where}: {kind} refuses {hyper}: {error}") from error
