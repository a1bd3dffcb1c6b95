"""A noise source whose numbers the test writes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class ScriptedNoise:
    """Stands in for `NoiseSource`: draw k of any purpose is ``script(k)``; remembers which draws were asked for."""

    script: Callable[[int], Tensor]
    draws: list[int] = field(default_factory=list)

    def normal(self, draw: int, purpose: str) -> Tensor:
        self.draws.append(draw)
        return self.script(draw)
