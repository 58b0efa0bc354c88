"""One modality's tokens in a line, for the heads that need an order in time."""

from __future__ import annotations

from collections.abc import Mapping

from mtmm_jax.batch import Tokens
from mtmm_jax.registry import ConfigError


def span_of(tokens: Mapping[str, Tokens], name: str | None, where: str) -> Tokens:
    """The tokens of modality `name` (of the only one by default), in time.

    Raises:
        ConfigError: if the task reads several things, a fusion that pooled its tokens away, or
            tokens in more than one direction, such as those of pictures.
    """
    if len(tokens) != 1:
        raise ConfigError(f"{where}: reads {', '.join(tokens)}; this head reads one thing")
    ((read, part),) = tokens.items()
    names = [span.name for span in part.layout]
    if not names:
        raise ConfigError(
            f"{where}: {read} has no places in time any more, as the fusion pooled its tokens; "
            "read one modality, or choose a fusion that keeps them"
        )
    if name is None and len(names) > 1:
        raise ConfigError(f"{where}.span: {read} has the tokens of {', '.join(names)}; name one")
    part = part.select(name or names[0])
    if len(part.layout[0].grid) != 1:
        raise ConfigError(
            f"{where}: {part.layout[0].name}'s tokens lie on a grid of {part.layout[0].grid}; "
            "this head needs them in a line"
        )
    return part
