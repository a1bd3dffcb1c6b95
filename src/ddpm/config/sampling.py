"""How a model is sampled, as configuration: a sampler, its steps, its times, and the options that it alone takes.

This module imports no torch: the command line reads it first.
"""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from ddpm.config.section import Section

SamplerName = Literal[
    "unipc",
    "dpm_solver_pp",
    "dpm_solver_pp_2s",
    "dpm_solver_pp_3m",
    "dpm_solver_pp_sde",
    "deis",
    "heun",
    "euler",
    "ddim",
    "ddpm",
    "pndm",
    "lms",
    "langevin",
    "predictor_corrector",
    "adaptive",
]
Spacing = Literal["trailing", "leading", "linspace", "quadratic", "log_snr", "karras"]
Variance = Literal["fixed_large", "fixed_small", "learned"]

_CHURN = ("churn", "churn_range", "churn_noise")

SAMPLER_OPTIONS: dict[SamplerName, tuple[str, ...]] = {
    "unipc": ("order", "variant"),
    "dpm_solver_pp": (),
    "dpm_solver_pp_2s": (),
    "dpm_solver_pp_3m": (),
    "dpm_solver_pp_sde": (),
    "deis": ("order",),
    "heun": _CHURN,
    "euler": _CHURN,
    "ddim": ("eta",),
    "ddpm": ("variance",),
    "pndm": (),
    "lms": ("order",),
    "langevin": ("inner_steps", "step_size"),
    "predictor_corrector": ("corrector_steps", "snr"),
    "adaptive": ("tolerance", "absolute_tolerance"),
}
"""The options of `SamplingConfig` that each sampler takes: the keyword arguments of its function."""

_PRIVATE = frozenset(name for taken in SAMPLER_OPTIONS.values() for name in taken) - {"variance"}
"""Options that mean something to their samplers alone; the variance also says which reverse process a bound is of."""


def not_taken(sampler: SamplerName, option: str) -> str:
    """Return the sentence that refuses an option."""
    return f"sampler '{sampler}' takes no option '{option}'; it takes {', '.join(SAMPLER_OPTIONS[sampler]) or 'none'}"


_OF_GUIDANCE = ("guidance", "guidance_interval", "guidance_rescale", "negative")


class SamplingConfig(Section):
    """What `ddpm sample` does when nothing else is asked for; stored in the model as its recommendation."""

    sampler: SamplerName = "unipc"
    steps: int = Field(20, ge=1, description="sampling steps")
    spacing: Spacing | None = Field(None, description="of the times that are visited; none: what suits the sampler")
    clip: bool = Field(True, description="clip the denoised estimate to the range of the data")
    timesteps: tuple[Annotated[float, Field(ge=0.0)], ...] | None = Field(
        None, min_length=1, description="the very times that are visited, decreasing; none: spread evenly"
    )
    guidance: float | None = Field(
        None,
        ge=0.0,
        description="scale of classifier-free guidance: 1, or none, is the condition alone; more exaggerates",
    )
    guidance_interval: tuple[Annotated[float, Field(ge=0.0)], Annotated[float, Field(ge=0.0)]] | None = Field(
        None, description="least and largest t of the guided steps; none: all"
    )
    negative: str | None = Field(
        None, min_length=1, description="text that guidance leads away from; none: from pictures without condition"
    )
    guidance_rescale: float | None = Field(
        None, ge=0.0, le=1.0, description="share of the contrast added by guidance that is taken back; none: 0"
    )

    eta: float = Field(0.0, ge=0.0, le=1.0, description="ddim: share of fresh noise: 0 deterministic, 1 ancestral")
    variance: Variance | None = Field(
        None, description="ddpm: of the reverse process; none: the one that the model was trained with"
    )
    order: int | None = Field(None, ge=1, le=4, description="unipc, deis (1 to 3) and lms (1 to 4); none: its own")
    variant: Literal["bh1", "bh2"] | None = Field(None, description="unipc: its B(h); none: bh1")
    churn: float | None = Field(None, ge=0.0, description="heun, euler: S_churn, the fresh noise in all; none: 0")
    churn_range: tuple[Annotated[float, Field(ge=0.0)], Annotated[float, Field(ge=0.0)]] | None = Field(
        None, description="heun, euler: the sigmas between which there is churn; none: all"
    )
    churn_noise: float | None = Field(None, ge=0.0, description="heun, euler: deviation of that noise; none: 1")
    inner_steps: int | None = Field(None, ge=1, description="langevin: steps at each time; none: 5")
    step_size: float | None = Field(None, gt=0.0, lt=2.0, description="langevin: in noise variances; none: 0.2")
    corrector_steps: int | None = Field(None, ge=1, description="predictor_corrector: Langevin steps; none: 1")
    snr: float | None = Field(None, gt=0.0, lt=1.0, description="predictor_corrector: signal to noise; none: 0.16")
    tolerance: float | None = Field(None, gt=0.0, description="adaptive: relative error of a step; none: 0.05")
    absolute_tolerance: float | None = Field(None, gt=0.0, description="adaptive: where x is small; none: 0.01")

    @model_validator(mode="after")
    def _timesteps_fit(self) -> SamplingConfig:
        times = self.timesteps
        if times is not None and len(times) != self.steps:
            raise ValueError(f"steps is {self.steps}, but timesteps names {len(times)}")
        if times is not None and any(s >= t for t, s in pairwise(times)):
            raise ValueError(f"timesteps are {list(times)}; expected each to be smaller than the one before")
        return self

    @model_validator(mode="after")
    def _interval_rises(self) -> SamplingConfig:
        low, high = self.guidance_interval or (0.0, 0.0)
        if low > high:
            raise ValueError(f"guidance_interval is {[low, high]}; expected the smaller time first")
        return self

    @property
    def is_guided(self) -> bool:
        """Whether there is classifier-free guidance."""
        return self.guidance not in (None, 1.0)

    @property
    def idle_option(self) -> str | None:
        """Name of an option of guidance that is set while no scale makes it act; none: there is no such."""
        if self.is_guided:
            return None
        return next((name for name in _OF_GUIDANCE[1:] if getattr(self, name) is not None), None)

    def unguided(self) -> SamplingConfig:
        """Return the same without classifier-free guidance."""
        return self.model_copy(update=dict.fromkeys(_OF_GUIDANCE))

    @model_validator(mode="after")
    def _sampler_takes_the_options(self) -> SamplingConfig:
        taken = SAMPLER_OPTIONS[self.sampler]
        for name in sorted(_PRIVATE.difference(taken)):
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(not_taken(self.sampler, name))
        return self

    def options(self) -> dict[str, Any]:
        """Return the options of the sampler that are set, by name."""
        values = {name: getattr(self, name) for name in SAMPLER_OPTIONS[self.sampler]}
        return {name: value for name, value in values.items() if value is not None}

    def for_sampler(self, name: str) -> SamplingConfig:
        """Return the advice for another sampler: spacing and options were chosen for this one, and do not go along."""
        if name == self.sampler:
            return self
        own = {key: type(self).model_fields[key].default for key in (*_PRIVATE, "spacing")}
        return self.model_copy(update={**own, "sampler": name})

    def as_tree(self) -> dict[str, Any]:
        """Return what is set, as plain JSON values; what other samplers take is left out."""
        tree: dict[str, Any] = json.loads(self.model_dump_json(exclude_none=True))
        foreign = _PRIVATE.difference(SAMPLER_OPTIONS[self.sampler])
        return {key: value for key, value in tree.items() if key not in foreign}
