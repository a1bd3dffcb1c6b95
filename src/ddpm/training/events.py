"""What happens in a run, as values: the command line shows them, the tests look at all of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from ddpm.engine import Engine
from ddpm.training.forecast import MemoryForecast
from ddpm.training.loop import StepReport
from ddpm.training.scoring import SampleScore
from ddpm.training.status import Evaluation, Status


@dataclass(frozen=True, slots=True)
class Started:
    """The run is about to make its next step: what it is, where, and what it will take."""

    folder: Path
    step: int
    num_steps: int
    num_parameters: int
    num_trained: int
    engine: Engine
    forecast_bytes: int
    memory: MemoryForecast


@dataclass(frozen=True, slots=True)
class Evaluated:
    """A held-out loss was measured."""

    evaluation: Evaluation
    status: Status


@dataclass(frozen=True, slots=True)
class Scored:
    """Samples of the averaged weights were scored.

    Attributes:
        score: what was found.
        is_best: whether no earlier one was better: the model is kept.
        seconds: what it took.
    """

    score: SampleScore
    is_best: bool
    seconds: float


@dataclass(frozen=True, slots=True)
class Saved:
    """A checkpoint and the model are on the disk."""

    step: int
    path: Path


@dataclass(frozen=True, slots=True)
class Previewed:
    """A preview grid was written."""

    path: Path


@dataclass(frozen=True, slots=True)
class Notice:
    """A sentence for the user."""

    text: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The run has ended, and everything is saved."""

    step: int
    reason: str
    complete: bool


Event: TypeAlias = Started | StepReport | Evaluated | Scored | Saved | Previewed | Notice | Finished
"""Everything that `ddpm.training.run.run` yields."""
