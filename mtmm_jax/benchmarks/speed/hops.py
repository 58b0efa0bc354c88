"""The code that one training step passes: files, functions and the deepest stack of this package.

    python -m mtmm_jax.benchmarks.speed.hops --json hops.json

The step of a toy (two tables, fused by `concat`, balanced by `pcgrad`) is traced once, as `jit`
does before it compiles, and every function of this package that is called is counted, from the step
down; `lambda`s, comprehensions and generators belong to the function that they stand in. `frames`
is the greatest depth of the stack, counted in functions of this package.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import mtmm_jax
from mtmm_jax.command import console, guarded, prepare_jax

ROOM = Path(mtmm_jax.__file__).parent
CONFIG, FUSION, BALANCING = "generator", "concat", "pcgrad"


class Counter:
    """Counts calls of this package's functions while it is entered, this file's excepted."""

    def __init__(self) -> None:
        self.functions: set[tuple[str, str]] = set()
        self.deepest: tuple[tuple[str, str], ...] = ()
        self._known: dict[CodeType, tuple[str, str] | None] = {}
        self._entered: CodeType | None = None

    def __enter__(self) -> Counter:
        self._entered = sys._getframe(1).f_code  # what stands above the step is not counted
        sys.setprofile(self._profile)
        return self

    def __exit__(self, *_: Any) -> None:
        sys.setprofile(None)

    def _name(self, code: CodeType) -> tuple[str, str] | None:
        """`(file, function)` of a function of this package."""
        if code not in self._known:
            path, name = Path(code.co_filename), None
            inside = path.is_relative_to(ROOM) and path != Path(__file__)
            if inside and not code.co_name.startswith("<"):
                name = (str(path.relative_to(ROOM)), code.co_qualname)
            self._known[code] = name
        return self._known[code]

    @property
    def files(self) -> list[str]:
        return sorted({file for file, _ in self.functions})

    def _profile(self, frame: FrameType | None, event: str, _: Any) -> None:
        if event != "call" or self._name(frame.f_code) is None:
            return
        stack = []
        while frame is not None and frame.f_code is not self._entered:
            if (name := self._name(frame.f_code)) is not None:
                stack.append(name)
            frame = frame.f_back
        self.functions.add(stack[0])
        if len(stack) > len(self.deepest):
            self.deepest = tuple(reversed(stack))


def toy(config: str = CONFIG, fusion: str = FUSION, balancing: str = BALANCING) -> Any:
    """A config with another fusion and another balancing method."""
    from mtmm_jax import training

    found = training.load(config)
    changes = {"model.fusion": fusion, "balancing": balancing}
    return training.apply_overrides(
        found, [f"--config.{key}={value}" for key, value in changes.items()]
    )


def count(config: Any) -> Counter:
    """The files and functions that tracing one step of a config passes."""
    import jax

    from mtmm_jax import training

    experiment = training.assemble(config)
    batch = next(iter(experiment.source.train(experiment.config["batch_size"], seed=0)))
    step, state = experiment.step(), experiment.shapes
    with Counter() as counter:
        jax.eval_shape(step, state, batch)
    return counter


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m mtmm_jax.benchmarks.speed.hops",
        description="Counts the files, functions and frames that one training step passes.",
    )
    p.add_argument("--config", default=CONFIG, help=f"a config by name or path ({CONFIG})")
    p.add_argument("--fusion", default=FUSION, help=f"`config.model.fusion` ({FUSION})")
    p.add_argument("--balancing", default=BALANCING, help=f"the balancing method ({BALANCING})")
    p.add_argument("--json", help="the file to write")
    return p


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    prepare_jax()
    counter = count(toy(options.config, options.fusion, options.balancing))
    files = counter.files
    found = {
        "config": options.config,
        "fusion": options.fusion,
        "balancing": options.balancing,
        "files": len(files),
        "functions": len(counter.functions),
        "frames": len(counter.deepest),
    }
    out = console()
    out.print(", ".join(f"{key} {value}" for key, value in found.items()), highlight=False)
    for depth, (file, name) in enumerate(counter.deepest):
        out.print(f"{' ' * depth}{file}  {name}", highlight=False, soft_wrap=True)
    out.print(f"files: {', '.join(files)}", highlight=False, soft_wrap=True)
    if options.json:
        stack = [f"{file}:{name}" for file, name in counter.deepest]
        found |= {"stack": stack, "passed": files}
        Path(options.json).write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
