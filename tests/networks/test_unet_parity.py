"""The same weights give the same outputs as in diffusers' UNet2DModel."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peers import HO, copy_unet

from ddpm.networks import UNet

diffusers = pytest.importorskip("diffusers")

PAPER_OF_2020 = (
    {"attention_levels": (1,)},
    {
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": None,
    },
)
PAPER_OF_2021 = (
    {"attention_levels": (1, 2), "head_channels": 16, "time_conditioning": "scale_shift", "resampling": "residual"},
    {
        "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"),
        "attention_head_dim": 16,
        "attn_norm_num_groups": 8,  # without it, diffusers leaves out this norm in the middle of scale_shift networks
        "resnet_time_scale_shift": "scale_shift",
        "downsample_type": "resnet",
        "upsample_type": "resnet",
    },
)


@pytest.mark.parametrize(("ours", "theirs"), [PAPER_OF_2020, PAPER_OF_2021], ids=["2020", "2021"])
def test_outputs_equal_those_of_diffusers(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    torch.manual_seed(0)
    reference = diffusers.UNet2DModel(
        sample_size=16, block_out_channels=(32, 64, 64), layers_per_block=2, norm_num_groups=8, **HO, **theirs
    )
    for weight in reference.parameters():  # diffusers starts norms at exactly 1 and 0, which would hide a swap
        weight.data += 0.05 * torch.randn_like(weight)
    network = UNet(in_channels=3, base_channels=32, channel_multipliers=(1, 2, 2), num_groups=8, **ours)
    assert sum(p.numel() for p in network.parameters()) == sum(p.numel() for p in reference.parameters())
    copy_unet(reference, network)
    x = torch.randn(2, 3, 16, 16)
    for t in (0.0, 7.0, 503.5, 999.0):
        times = torch.full((2,), t)
        with torch.no_grad():
            expected, got = reference(x, times).sample, network(x, times)
        assert expected.abs().max() > 0.1
        assert (got - expected).abs().max() < 1e-5 * max(1.0, expected.abs().max().item())
    reference, network = reference.double(), network.double()
    with torch.no_grad():
        times = torch.tensor([3.0, 998.0])  # float32: diffusers computes the angles in float32
        expected, got = reference(x.double(), times).sample, network(x.double(), times)
    assert (got - expected).abs().max() < 1e-5 * expected.abs().max().item()
