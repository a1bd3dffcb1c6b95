"""Every sampler by its name, and what one has to know to choose."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ddpm.diffusion.samplers.adaptive import adaptive
from ddpm.diffusion.samplers.ancestral import ddpm
from ddpm.diffusion.samplers.ddim import ddim
from ddpm.diffusion.samplers.deis import deis
from ddpm.diffusion.samplers.dpm_solver_pp import (
    dpm_solver_pp,
    dpm_solver_pp_2s,
    dpm_solver_pp_3m,
    dpm_solver_pp_sde,
)
from ddpm.diffusion.samplers.langevin import langevin, predictor_corrector
from ddpm.diffusion.samplers.linear_multistep import lms, pndm
from ddpm.diffusion.samplers.sigma_space import euler, heun
from ddpm.diffusion.samplers.step import SampleStep
from ddpm.diffusion.samplers.timesteps import Spacing
from ddpm.diffusion.samplers.unipc import unipc


@dataclass(frozen=True, slots=True)
class SamplerEntry:
    """A sampler and its facts, at its default options.

    Attributes:
        run: the generator: (denoiser, schedule, x_T, noise, *, timesteps, after_step) and its own options.
        order: the power of the step with which its error falls; none for those that add noise.
        evaluations: of the denoiser in a step, in the long run; none where it is not known in advance.
        spacing: of the timesteps that suits it.
    """

    run: Callable[..., Iterator[SampleStep]]
    order: int | None
    evaluations: int | None
    spacing: Spacing = "trailing"

    @property
    def deterministic(self) -> bool:
        """Whether x_T alone decides the picture."""
        return self.order is not None

    @property
    def options(self) -> tuple[str, ...]:
        """The names of its own keyword arguments."""
        common = {"timesteps", "after_step", "mean_shift"}
        parameters = inspect.signature(self.run).parameters.values()
        return tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in common)


SAMPLERS: dict[str, SamplerEntry] = {
    "unipc": SamplerEntry(unipc, order=3, evaluations=1),
    "dpm_solver_pp": SamplerEntry(dpm_solver_pp, order=2, evaluations=1),
    "dpm_solver_pp_2s": SamplerEntry(dpm_solver_pp_2s, order=2, evaluations=2),
    "dpm_solver_pp_3m": SamplerEntry(dpm_solver_pp_3m, order=3, evaluations=1),
    "dpm_solver_pp_sde": SamplerEntry(dpm_solver_pp_sde, order=None, evaluations=1),
    "deis": SamplerEntry(deis, order=3, evaluations=1),
    "heun": SamplerEntry(heun, order=2, evaluations=2, spacing="log_snr"),
    "euler": SamplerEntry(euler, order=1, evaluations=1),
    "ddim": SamplerEntry(ddim, order=1, evaluations=1),
    "ddpm": SamplerEntry(ddpm, order=None, evaluations=1),
    "pndm": SamplerEntry(pndm, order=2, evaluations=1, spacing="log_snr"),
    "lms": SamplerEntry(lms, order=4, evaluations=1),
    "langevin": SamplerEntry(langevin, order=None, evaluations=5),
    "predictor_corrector": SamplerEntry(predictor_corrector, order=None, evaluations=2),
    "adaptive": SamplerEntry(adaptive, order=2, evaluations=None),
}
"""Every sampler by its name; the first is the default."""
