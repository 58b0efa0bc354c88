"""The contracts between rooms: batches of inputs and targets, the `Spec` that describes them, and
`Tokens` between encoders, fusion, sharing and heads.

    batch = {
        "inputs":  {modality: {"x": [B, ...], "mask": [B, N]?, "positions": [B, N, P]?,
                               "present": [B] bool}},
        "targets": {target: {"y": [B, ...], "present": [B] bool}},
        "weight":  [B] float?,   # 0 for the rows that pad the last batch of a split
        "id":      [B] int?,
    }

A missing modality or label is `present=False` over any filler, NaN included; `clean` replaces the
filler once, at the model's entrance.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from mtmm_jax.modalities import Modality as Modality
from mtmm_jax.modalities import kind_of
from mtmm_jax.registry import ConfigError, choose
from mtmm_jax.targets import Target as Target

Batch = dict[str, Any]


def _zeros(name: str, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    try:
        return np.zeros(shape, dtype)
    except (MemoryError, ValueError) as error:  # a spec that somebody wrote by hand
        raise ConfigError(
            f"spec.modalities.{name}: {shape[0]} rows of {dtype}{list(shape[1:])} do not fit into "
            "the memory"
        ) from error


@dataclasses.dataclass(frozen=True)
class Spec:
    """Everything a model must know of a source. Kept in the workdir as JSON."""

    modalities: Mapping[str, Modality]
    targets: Mapping[str, Target]

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Spec:
        def revive(kind: type, entry: Mapping[str, Any]) -> Any:
            return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in entry.items()})

        return cls(
            {name: revive(Modality, entry) for name, entry in value["modalities"].items()},
            {name: revive(Target, entry) for name, entry in value["targets"].items()},
        )

    def example(self, batch_size: int) -> Batch:
        """A batch of zeros, all present, for `init` and `eval_shape`. Lengths of `None` are 8."""
        present = np.ones(batch_size, bool)
        inputs = {}
        for name, modality in self.modalities.items():
            shape = tuple(8 if size is None else size for size in modality.shape)
            x = _zeros(name, (batch_size, *shape), modality.dtype)
            inputs[name] = {"x": x, "present": present}
            if kind_of(modality).mask == "always":
                inputs[name]["mask"] = np.ones((batch_size, shape[0]), bool)
        targets = {
            name: {"y": target.blank(batch_size), "present": present}
            for name, target in self.targets.items()
        }
        return {
            "inputs": inputs,
            "targets": targets,
            "id": np.arange(batch_size, dtype=np.int32),
            "weight": np.ones(batch_size, np.float32),
        }

    def check(self, batch: Batch, where: str = "batch") -> None:
        """Raises a `ConfigError` where a batch disagrees with this spec; before compiling."""
        choose_all(batch, ("inputs", "targets", "weight", "id"), where, "key")
        choose_all(batch["inputs"], self.modalities, f"{where}.inputs", "modality")
        choose_all(batch["targets"], self.targets, f"{where}.targets", "target")
        sizes = {}
        for name, entry in batch["inputs"].items():
            at, modality = f"{where}.inputs.{name}", self.modalities[name]
            choose_all(entry, ("x", "mask", "positions", "present"), at, "key")
            for key in ("x", "present"):
                if key not in entry:
                    raise ConfigError(f"{at}: has no {key!r}")
            shape, dtype = np.shape(entry["x"]), np.dtype(entry["x"].dtype).name
            fits = len(shape) == 1 + len(modality.shape) and all(
                want in (None, got) for want, got in zip(modality.shape, shape[1:], strict=True)
            )
            if not fits or dtype != modality.dtype:
                raise ConfigError(
                    f"{at}.x: is {dtype}{list(shape)}; the spec says "
                    f"{modality.dtype}[B, {', '.join(map(str, modality.shape))}]"
                )
            if "mask" in entry and np.shape(entry["mask"]) != shape[:2]:
                raise ConfigError(f"{at}.mask: is {np.shape(entry['mask'])}, not {shape[:2]}")
            sizes[f"{at}.x"] = shape[0]
            sizes[f"{at}.present"] = np.shape(entry["present"])[0]
        for name, entry in batch["targets"].items():
            for key in ("y", "present"):
                if key not in entry:
                    raise ConfigError(f"{where}.targets.{name}: has no {key!r}")
            self.targets[name].check(entry["y"], f"{where}.targets.{name}.y")
            sizes[f"{where}.targets.{name}.y"] = len(jax.tree.leaves(entry["y"])[0])
            sizes[f"{where}.targets.{name}.present"] = len(entry["present"])
        if len(set(sizes.values())) > 1:
            raise ConfigError(f"{where}: batch sizes differ: {sizes}")


def choose_all(values: Iterable[str], choices: Iterable[str], where: str, what: str) -> None:
    """`registry.choose` for each of several values."""
    choices = list(choices)
    for value in values:
        choose(value, choices, where, what)


def check_tokens(tokens: Any, where: str) -> None:
    """Refuses what is not `{modality: Tokens}`, in one line that says how to make it."""
    if isinstance(tokens, Mapping):
        wrong = {name: part for name, part in tokens.items() if not isinstance(part, Tokens)}
        given = ", ".join(f"{name}: {_described(part)}" for name, part in wrong.items())
    else:
        wrong, given = tokens, _described(tokens)
    if wrong is tokens or wrong:
        raise ConfigError(
            f"{where}: takes {{modality: Tokens}}, not {given}; make one of values [B, N, D] by "
            "Tokens.of(values, mask, modality) of mtmm_jax.batch, mask [B, N] False where absent"
        )


def check_entry(entry: Any, where: str) -> None:
    """Refuses what is not an entry of `batch["inputs"]`, in one line that says how to make it."""
    if not isinstance(entry, Mapping) or not {"x", "present"} <= set(entry):
        given = ", ".join(entry) if isinstance(entry, Mapping) else _described(entry)
        raise ConfigError(
            f'{where}: takes {{"x", "present", "mask"?, "positions"?}}, not {given}; make one '
            'of an array by {"x": x, "present": jnp.ones(len(x), bool)}'
        )


def _described(value: Any) -> str:
    kind = type(value).__name__
    return f"an array {value.dtype}{list(value.shape)}" if hasattr(value, "dtype") else kind


def clean(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Replaces the filler of absent modalities and of masked positions by zeros.

    This is the one place where filler, NaN included, is stopped: after it every leaf is finite
    where it is present, and zero elsewhere.
    """

    def silence(leaf: jax.Array, keep: jax.Array) -> jax.Array:
        keep = keep.reshape(keep.shape + (1,) * (leaf.ndim - keep.ndim))
        return jnp.where(keep, leaf, jnp.zeros((), leaf.dtype))

    cleaned = {}
    for name, entry in inputs.items():
        present = entry["present"]
        keep = entry["mask"] & present[:, None] if "mask" in entry else present
        cleaned[name] = {
            **entry,
            **{
                key: jax.tree.map(lambda leaf, keep=keep: silence(leaf, keep), entry[key])
                for key in ("x", "positions")
                if key in entry
            },
        }
        if "mask" in entry:
            cleaned[name]["mask"] = keep
    return cleaned


class Span(NamedTuple):
    """A run of tokens that came from one modality.

    Attributes:
        name: the modality.
        length: the number of tokens.
        grid: their arrangement, such as (4, 4) for an image's cells, or (length,).
        stride: the size of one cell in the modality's own units (pixels, seconds).
    """

    name: str
    length: int
    grid: tuple[int, ...]
    stride: tuple[float, ...]


@flax.struct.dataclass
class Tokens:
    """Features of a batch: `values[B, N, D]` and `mask[B, N]`, given by encoders and read by heads.

    A pooled vector is N = 1. `positions[B, N, P]` are seconds or (y, x). `layout` is static: the
    spans, in order, so that detection and CTC find their grid again.
    """

    values: jax.Array
    mask: jax.Array
    positions: jax.Array | None = None
    layout: tuple[Span, ...] = flax.struct.field(pytree_node=False, default=())

    @classmethod
    def of(
        cls,
        values: jax.Array,
        mask: jax.Array,
        name: str,
        *,
        grid: tuple[int, ...] | None = None,
        stride: tuple[float, ...] | None = None,
        positions: jax.Array | None = None,
    ) -> Tokens:
        """Tokens of one modality; `grid` defaults to a line, `stride` to one."""
        grid = grid or (values.shape[1],)
        span = Span(name, values.shape[1], grid, stride or (1.0,) * len(grid))
        return cls(values, mask, positions, (span,))

    @classmethod
    def join(cls, parts: Iterable[Tokens]) -> Tokens:
        """Several modalities' tokens in one sequence; positions stay if all have the same kind."""
        parts = list(parts)
        positions = [part.positions for part in parts]
        same = all(p is not None and p.shape[-1] == positions[0].shape[-1] for p in positions)
        return cls(
            jnp.concatenate([part.values for part in parts], axis=1),
            jnp.concatenate([part.mask for part in parts], axis=1),
            jnp.concatenate(positions, axis=1) if same else None,
            tuple(span for part in parts for span in part.layout),
        )

    @property
    def present(self) -> jax.Array:
        """`[B]`: whether a sample has any token."""
        return self.mask.any(axis=1)

    def replace_values(self, values: jax.Array) -> Tokens:
        return dataclasses.replace(self, values=values)

    def stop_gradient(self) -> Tokens:
        """The tokens as constants: no gradient passes to what computed them."""
        return self.replace_values(jax.lax.stop_gradient(self.values))

    def zero_masked(self) -> Tokens:
        """The tokens with zeros where they are masked, such as those of an absent modality."""
        values = jnp.where(self.mask[..., None], self.values, 0)
        return self.replace_values(values.astype(self.values.dtype))

    def select(self, name: str) -> Tokens:
        """The tokens that came from one modality."""
        start = 0
        for span in self.layout:
            if span.name == name:
                stop = start + span.length
                positions = None if self.positions is None else self.positions[:, start:stop]
                return Tokens(
                    self.values[:, start:stop], self.mask[:, start:stop], positions, (span,)
                )
            start += span.length
        raise ConfigError(
            f"tokens of {name!r} are not in this sequence; it has: "
            f"{', '.join(span.name for span in self.layout) or 'no layout (the fusion pooled it)'}"
        )

    def grid(self) -> jax.Array:
        """`[B, *grid, D]`, for tokens of a single span."""
        if len(self.layout) != 1:
            raise ConfigError(f"a grid needs the tokens of one modality, not of {self.layout}")
        return self.values.reshape(
            self.values.shape[0], *self.layout[0].grid, self.values.shape[-1]
        )

    def mean(self) -> jax.Array:
        """`[B, D]`: the mean over the unmasked tokens, zero where there is none."""
        keep = self.mask[..., None].astype(self.values.dtype)
        return (self.values * keep).sum(1) / jnp.maximum(keep.sum(1), 1)
