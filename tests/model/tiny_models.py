"""A model that makes pictures at once, without any training."""

from __future__ import annotations

from typing import Any

import torch

from ddpm.codec import PixelCodec
from ddpm.config import NetworkConfig
from ddpm.config.sampling import SamplingConfig, Variance
from ddpm.diffusion import make_schedule
from ddpm.model import Model
from ddpm.networks import build_network


def tiny_model(
    *,
    codec: PixelCodec | None = None,
    variance: Variance = "fixed_large",
    self_conditioning: bool = False,
    **advice: Any,
) -> Model:
    """Return a model of 6x5 colour pictures whose random weights do make pictures that differ."""
    config = NetworkConfig(
        base_channels=8,
        channel_multipliers=(1, 2),
        blocks_per_level=1,
        attention_levels=(1,),
        num_groups=4,
        self_conditioning=self_conditioning,
    )
    network = build_network(config, (6, 5, 3), learned_variance=variance == "learned")
    generator = torch.Generator().manual_seed(0)
    for weight in network.parameters():
        weight.data = 0.1 * torch.randn(weight.shape, generator=generator)
    network.eval().requires_grad_(False)
    return Model(
        network=network,
        network_config=config,
        schedule=make_schedule("cosine", 20),
        parameterization="v",
        codec=codec or PixelCodec(256, (0.0, 255.0), "uint8"),
        picture_shape=(6, 5, 3),
        variance=variance,
        sampling=SamplingConfig(**{"steps": 3, **advice}),
        provenance={"step": 7, "data": "no data", "config": {"seed": 0}},
    )
