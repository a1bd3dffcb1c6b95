"""What a run on top of another model is configured by: where it begins, and which of its weights it trains."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ddpm.config.section import Section


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


class ImageAdapterConfig(Section):
    """An image adapter: what reads the prompt, and what the network makes of it (Ye et al. 2023)."""

    encoder: str = Field(
        "base",
        min_length=1,
        description="base: the frozen base itself; or a classifier's file; or a CLIP vision encoder's folder or name",
    )
    encoder_sha256: str | None = Field(None, description="of the encoder's files; none for the base")
    given: int = Field(1, ge=1, le=4096, description="vectors of features of a picture")
    features: int = Field(ge=1, le=65_536, description="width of the features")
    tokens: int = Field(4, ge=1, le=4096, description="that pixels look at; of several vectors, as many as these")
    width: int = Field(256, ge=4, le=4096, description="of the tokens")
    condition_dropout: float = Field(
        0.5,
        ge=0.0,
        le=1.0,
        description="share of training pictures whose text or label is hidden, so that a prompt can stand alone",
    )
