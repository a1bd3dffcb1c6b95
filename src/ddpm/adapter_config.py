"""What a run on top of another model is configured by: where it begins, and which of its weights it trains."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ddpm.section import Section


class FineTuningConfig(Section):
    """The model that a run begins with; `ddpm train --init` fills it in."""

    base: str = Field(description="file of the model whose weights the run begins with")
    base_sha256: str = Field(description="of that file")


class LoraConfig(Section):
    """Low-rank updates of a base's weights, in place of the weights themselves (Hu et al. 2021)."""

    rank: int = Field(0, ge=0, le=4096, description="of the updates; 0: the weights themselves are trained")
    alpha: float | None = Field(
        None, gt=0.0, description="the update is alpha / rank times the product of its factors; none: the rank"
    )
    layers: Literal["attention", "linear", "all"] = Field(
        "all", description="which weights: those of attention, all linear ones, or convolutions too"
    )
