"""Averages of a run's weights over any width, made after the training (Karras et al. 2024b, Sec. 3).

A power-function average weighs the weights of step tau among t by tau^gamma: its width, the standard deviation of that
profile relative to t, stays the same however long one trains. Averages of two widths, kept at several steps of a run,
span a space of profiles, and any other profile is nearly a linear combination of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddpm.errors import ConfigError, ModelFileError
from ddpm.model.model import Model
from ddpm.model_file import read_description

KEPT_WIDTHS = (0.05, 0.1)
"""Widths that a run keeps averages of, as in the paper."""

LEAST_WIDTH, MOST_WIDTH = 0.01, 0.25
"""Narrower, an average is hardly one; wider than 1 / sqrt(12) = 0.289 no power function is."""

FOLDER = "averages"
"""Of a run: where it keeps them."""


@dataclass(frozen=True, slots=True)
class Profile:
    """How much each step weighs in an average: (gamma + 1) tau^gamma / t^(gamma + 1), for tau in [0, t].

    Attributes:
        width: standard deviation of tau / t.
        step: t, the last step in it.
    """

    width: float
    step: int


def exponent(width: float) -> float:
    """Return the gamma of a width: width^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)).

    Raises:
        ConfigError: if it is not from `LEAST_WIDTH` to `MOST_WIDTH`.
    """
    if not LEAST_WIDTH <= width <= MOST_WIDTH:
        raise ConfigError(
            f"an average of width {width:g}; expected a share of the training from {LEAST_WIDTH:g} to {MOST_WIDTH:g}"
        )
    # The width falls in gamma from 0 on; in x = gamma + 2 the equation is cubic: width^2 x^2 (x + 1) = x - 1.
    roots = np.roots([width**2, width**2, -1.0, 1.0])
    return float(max(roots.real)) - 2


def overlap(one: Profile, other: Profile) -> float:
    """Return the integral of the product of two profiles, in closed form."""
    first, last = sorted((one, other), key=lambda profile: profile.step)
    a, b = exponent(first.width), exponent(last.width)
    return (a + 1) * (b + 1) * math.pow(first.step / last.step, b) / ((a + b + 1) * last.step)


def mixing_weights(kept: Sequence[Profile], wanted: Profile) -> NDArray[np.float64]:
    """Return the weights with which kept averages add up to the wanted one, nearest in the least-squares sense.

    Args:
        kept: their profiles.
        wanted: the profile to be approached.

    Returns:
        float64 [len(kept)]; they add up to 1, which keeps weights that never move.
    """
    count = len(kept)
    system = np.ones((count + 1, count + 1))
    system[:count, :count] = [[overlap(one, other) for other in kept] for one in kept]
    system[count, count] = 0.0
    scale = system[:count, :count].max()
    system[:count, :count] /= scale
    target = np.array([*(overlap(each, wanted) / scale for each in kept), 1.0])
    # With the multiplier of the constraint in the last row; near-equal profiles make it nearly singular.
    solution: NDArray[np.float64] = np.linalg.lstsq(system, target, rcond=1e-12)[0]
    return solution[:count]


def misfit(kept: Sequence[Profile], wanted: Profile) -> float:
    """Return the norm of the difference between the wanted profile and its approximation, relative to its own."""
    weights = mixing_weights(kept, wanted)
    inner = np.array([[overlap(one, other) for other in kept] for one in kept])
    cross = np.array([overlap(each, wanted) for each in kept])
    norm = overlap(wanted, wanted)
    return math.sqrt(max(0.0, float(weights @ inner @ weights - 2 * weights @ cross + norm)) / norm)


@dataclass(frozen=True)
class KeptAverages:
    """The averages that a run has kept.

    Attributes:
        files: model files, each an average of one width at one step.
        profiles: theirs.
    """

    files: tuple[Path, ...]
    profiles: tuple[Profile, ...]

    @staticmethod
    def of_run(run: Path) -> KeptAverages:
        """Return those of a run folder, in the order of their steps.

        Raises:
            ModelFileError: if it has none.
        """
        files = sorted((run / FOLDER).glob("*.safetensors"))
        if not files:
            raise ModelFileError(
                f"'{run}' holds no averages; expected a run of 'ddpm train ... --set training.snapshots=16', which "
                "keeps them on the way"
            )
        return KeptAverages(tuple(files), tuple(_profile_of(file) for file in files))

    @property
    def step(self) -> int:
        """The last one."""
        return max(profile.step for profile in self.profiles)

    def misfit(self, width: float) -> float:
        """Return how far an average of this width at the last step is from what can be made, 0 to 1."""
        return misfit(self.profiles, Profile(width, self.step))

    def model(self, width: float) -> Model:
        """Return the model whose weights are averaged over this width, at the last step.

        Raises:
            ConfigError: for a width out of range.
        """
        weights = mixing_weights(self.profiles, Profile(width, self.step))
        total: dict[str, Tensor] = {}
        for file, weight in zip(self.files, weights, strict=True):
            for name, tensor in Model.load(file).network.state_dict().items():
                part = weight * tensor.double()
                total[name] = total[name] + part if name in total else part
        last = Model.load(self.files[int(np.argmax([profile.step for profile in self.profiles]))])
        last.network.load_state_dict({name: tensor.to(torch.float32) for name, tensor in total.items()})
        return replace(last, provenance=with_width(last.provenance, width))


def with_width(provenance: Mapping[str, Any], width: float) -> dict[str, Any]:
    """Return the provenance of a model whose weights are an average of this width."""
    return {**provenance, "weights": "power-function average", "average_width": width}


def _profile_of(file: Path) -> Profile:
    provenance = read_description(file).get("provenance", {})
    try:
        return Profile(float(provenance["average_width"]), int(provenance["step"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ModelFileError(f"'{file}' is no average that a run has kept; move it out of '{file.parent}'") from error
