"""A number and how sure it is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Estimate:
    """A score with its standard error.

    Attributes:
        value: the score.
        error: one standard error, in the unit of the score.
    """

    value: float
    error: float
