"""The score of a model's samples that a run keeps its best model by: what the run must know of it, and no more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ddpm.estimate import Estimate
from ddpm.model import Model


class Scorer(Protocol):
    """Samples a model and scores what it makes, always in the same way. Made outside, given to `run`."""

    @property
    def words(self) -> str:
        """What is scored how, for people."""
        ...

    def recipe(self, model: Model) -> str:
        """Return in one line all that decides the score of a model beside its weights: other recipes do not compare."""
        ...

    def __call__(self, model: Model) -> Estimate:
        """Return the score, less is better: the same for the same weights.

        Raises:
            SamplingError: if the network returns numbers that are not finite.
            DataError: if the samples have no score, as when they are all the same.
        """
        ...


@dataclass(frozen=True, slots=True)
class SampleScore:
    """The score of a model at one step.

    Attributes:
        step: steps made.
        value: less is better.
        error: its standard error.
        recipe: how it was measured.
    """

    step: int
    value: float
    error: float
    recipe: str


def is_best(history: Sequence[SampleScore]) -> bool:
    """Whether the latest score is the least of those that were measured in the same way."""
    latest = history[-1]
    return latest.value <= min(past.value for past in history if past.recipe == latest.recipe)
