"""Early stopping: training ends when the validation score has not improved for some evaluations.

    config.stopping = {"patience": 5, "least": 0.001}     # or 5, for the patience alone

The score is the one that chooses the best checkpoint, `config.checkpoint.best`. How it went is
saved with every checkpoint, so that a resumed run stops where the uninterrupted one does.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from mtmm_jax.ranges import Count, NonNegative
from mtmm_jax.registry import check, is_section, section_of


@dataclasses.dataclass(frozen=True)
class StoppingSettings:
    """`config.stopping`.

    Attributes:
        patience: training ends after this many evaluations in a row without an improvement.
        least: a score improves if it is higher than the best one by more than this.
    """

    patience: Count
    least: NonNegative = 0.0


def read(section: Any, where: str = "stopping") -> StoppingSettings | None:
    """The section, or the patience alone; None where there is none."""
    if section is None:
        return None
    if not is_section(section):
        return StoppingSettings(check(section, Count, where))
    return StoppingSettings(**section_of(section, StoppingSettings, where, "{'patience': 5}"))


class Progress(NamedTuple):
    """The course of the validation score so far.

    Attributes:
        best: the score that later ones are compared with.
        step: when it was reached; 0 before the first finite score.
        last: the step of the last evaluation.
        stale: evaluations since then without an improvement.
    """

    best: float = -math.inf
    step: int = 0
    last: int = 0
    stale: int = 0

    @classmethod
    def of(cls, stored: Mapping[str, Any] | None) -> Progress:
        """From what a checkpoint keeps; the start where it keeps nothing."""
        return cls(**stored) if stored else cls()

    def after(self, step: int, score: float, settings: StoppingSettings | None) -> Progress:
        """With one more evaluation; a score of -inf is none and never an improvement."""
        least = 0.0 if settings is None else settings.least
        if score > self.best + least:
            return Progress(score, step, step, 0)
        return self._replace(last=step, stale=self.stale + 1)

    def since(self, name: str) -> str:
        """Since when the score of that name has not improved, in words."""
        best = f"step {self.step}" if self.step else "the beginning"
        return (
            f"the validation score ({name}) has not improved since {best}, in {self.stale} "
            "evaluations"
        )

    def ended(self, settings: StoppingSettings | None) -> bool:
        """Whether training is over before its last step."""
        return settings is not None and self.stale >= settings.patience
