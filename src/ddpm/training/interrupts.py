"""Ctrl-C and SIGTERM ask for a stop after the step at hand, so that state is saved whole."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class Interrupts:
    """While entered, the first SIGINT or SIGTERM only sets `number`; a second one ends the process as usual.

    Attributes:
        number: of the signal that came, or 0.
    """

    def __init__(self) -> None:
        self.number = 0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():  # Python delivers signals to no other
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._request)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    @property
    def requested(self) -> str | None:
        """Name of the signal that came, or none."""
        return name_of(self.number) if self.number else None

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()


def name_of(number: int) -> str:
    """Return the name of a signal, such as "SIGINT"."""
    return signal.Signals(number).name
