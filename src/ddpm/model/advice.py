"""Sampling advice, changed: what stays, and what no longer applies."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from ddpm.config import explain
from ddpm.config.sampling import SamplingConfig
from ddpm.diffusion.samplers import SAMPLERS
from ddpm.errors import SamplingError, nearest


def changed_advice(advice: SamplingConfig, changes: Mapping[str, Any]) -> SamplingConfig:
    """Return sampling advice with some of its fields replaced; see `Model.with_sampling`.

    Raises:
        SamplingError: for a field or a value that is not valid, or an option that the sampler does not take.
    """
    wanted = {key: value for key, value in changes.items() if value is not None}
    name = wanted.get("sampler", advice.sampler)
    if not isinstance(name, str) or name not in SAMPLERS:
        known = ", ".join(SAMPLERS)
        raise SamplingError(f"unknown sampler '{name}'{nearest(str(name), SAMPLERS)}; known are {known}")
    if wanted.get("steps", advice.steps) != advice.steps:
        wanted.setdefault("timesteps", None)  # explicit times are of one number of steps
    if wanted.get("guidance") == 1:
        wanted = {"guidance_interval": None, "guidance_rescale": None, **wanted}  # advice about what is now off
    tree = {**advice.for_sampler(name).model_dump(), **wanted}
    try:
        return SamplingConfig.model_validate_json(json.dumps(tree))  # as from a file: a list may be a tuple
    except ValidationError as error:
        raise SamplingError(explain(error, "sampling")) from error
