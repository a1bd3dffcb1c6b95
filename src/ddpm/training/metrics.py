"""The training loss over the last steps, whole and by noise level."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddpm.training.loop import StepReport

NOISE_RANGES = 4
"""Into how many ranges of t losses are split, from little noise to much."""


def noise_range(t: NDArray[np.int64], num_timesteps: int) -> NDArray[np.int64]:
    """Return the range (0 to 3) that each t falls into."""
    ranges: NDArray[np.int64] = t * NOISE_RANGES // num_timesteps
    return ranges


class LossWindow:
    """Mean losses since the last line of metrics."""

    def __init__(self, num_timesteps: int) -> None:
        self.num_timesteps = num_timesteps
        self._start()

    def _start(self) -> None:
        self._losses: list[float] = []
        self._parts: dict[str, list[float]] = {}
        self._sums = np.zeros(NOISE_RANGES)
        self._counts = np.zeros(NOISE_RANGES, dtype=np.int64)
        self._norms: list[float] = []
        self._latest: StepReport | None = None
        self._skipped = 0

    @property
    def empty(self) -> bool:
        """Whether no step was taken in since the last line."""
        return self._latest is None

    def add(self, report: StepReport) -> None:
        """Take in a step; one that was skipped counts as skipped alone."""
        self._latest = report
        if report.skipped:
            self._skipped += 1
            return
        self._losses.append(report.loss)
        for name, part in report.parts.items():
            self._parts.setdefault(name, []).append(float((report.weights * part).mean()))
        ranges = noise_range(report.t, self.num_timesteps)
        np.add.at(self._sums, ranges, report.losses)
        np.add.at(self._counts, ranges, 1)
        self._norms.append(report.gradient_norm)

    def take(self) -> dict[str, Any]:
        """Return the line of metrics, and start anew."""
        assert self._latest is not None  # a line is only asked for after a step
        line = {
            "step": self._latest.step,
            "loss": float(np.mean(self._losses)) if self._losses else None,
            **{name: float(np.mean(values)) for name, values in self._parts.items()},
            "loss_by_noise": [float(s / c) if c else None for s, c in zip(self._sums, self._counts, strict=True)],
            "gradient_norm": float(np.mean(self._norms)) if self._norms else None,
            "learning_rate": self._latest.learning_rate,
            "skipped": self._skipped,
        }
        self._start()
        return line
