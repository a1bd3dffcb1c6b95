"""Guidance as a model's sampling advice has it: what it is, what it leads away from, what forbids it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ddpm.conditions import Condition
from ddpm.diffusion.guidance import Guidance
from ddpm.errors import SamplingError
from ddpm.text.encoding import encode_texts

if TYPE_CHECKING:
    from ddpm.model.model import Model


def advised_guidance(model: Model) -> Guidance | None:
    """Return the guidance of the sampling advice; None where it has none. A guide's is 1 if nothing is said."""
    advice = model.sampling
    scale = advice.guidance if model.guide is None or advice.guidance is not None else 1.0
    if scale is None or (scale == 1 and model.guide is None):
        return None
    return Guidance(scale, advice.guidance_interval, advice.guidance_rescale or 0.0)


def negative_condition(model: Model, condition: Condition) -> Condition | None:
    """Return what guidance leads away from: the negative text; None where there is none, for no condition."""
    if model.sampling.negative is None or model.conditions.text is None:
        return None
    tokens = encode_texts(model.conditions.text, [model.sampling.negative]).to(model.device)
    return replace(condition.dropped(), tokens=tokens.expand(len(condition), *tokens.shape[1:]))


def refuse_guidance(model: Model, condition: Condition | None) -> None:
    """Refuse guidance that the model cannot follow.

    Args:
        model: with its sampling advice.
        condition: of the pictures. Without an image prompt, an image adapter leaves its base as it is, and what cannot
            guide the base cannot guide here.

    Raises:
        SamplingError: for an interval that is out of range; an interval, a rescaling or a negative text without
            guidance; a negative text where there are no texts; guidance of a model that knows no pictures without
            condition, or no others.
    """
    negative = model.sampling.negative
    if negative is not None and model.guide is None and model.conditions.text is None:
        raise SamplingError(f"negative '{negative}', but this model was trained without texts; leave it out")
    idle, interval, last = model.sampling.idle_option, model.sampling.guidance_interval, len(model.schedule) - 1
    if idle is not None and (model.guidance is None or idle == "negative"):  # a classifier at scale 1 does guide
        raise SamplingError(f"{idle} without guidance; ask for some, such as --guidance 2, or leave it out")
    if interval is not None and interval[1] > last:
        raise SamplingError(f"guidance interval {list(interval)}; the times of this model go from 0 to {last:,}")
    if not model.sampling.is_guided:
        return
    if negative is not None and model.guide is not None:
        raise SamplingError(f"negative '{negative}', but a guide decides what is led away from; leave one out")
    if model.guide is not None:
        return  # a guide needs no dropout
    prompted = model.prompt is not None or (condition is not None and condition.prompt is not None)
    if not model.conditions.any and not prompted:
        told = "is given no image prompt" if model.prompt_reader is not None else "was trained without conditions"
        advice = "give one with --prompt-image, or leave it out" if model.prompt_reader is not None else "leave it out"
        raise SamplingError(
            f"guidance {model.sampling.guidance:g}, but this model {told}: there is nothing to guide to; {advice}"
        )
    if model.conditions.any and model.conditions.dropout == 0:
        raise SamplingError(
            f"guidance {model.sampling.guidance:g}, but this model was trained with conditions.dropout=0, and knows "
            "no pictures without condition to guide away from; train with some, such as 0.1"
        )
