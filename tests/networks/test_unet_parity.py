"""The same weights give the same outputs as in diffusers' UNet2DModel."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from ddpm.networks import UNet
from ddpm.networks.blocks import Attention, ResBlock

diffusers = pytest.importorskip("diffusers")

# diffusers' defaults follow other codes than Ho's. The published google/ddpm-cifar10-32 sets, as here:
#   flip_sin_to_cos=False   sines before cosines in the time embedding
#   freq_shift=1            frequencies end exactly at 1/10000: exponents i / (half - 1)
#   downsample_padding=0    the strided convolution is padded at the right and the bottom only (TensorFlow's SAME)
#   norm_eps=1e-6           epsilon of GroupNorm in TensorFlow's contrib.layers (torch and diffusers: 1e-5)
# diffusers projects the time embedding inside each block; here one matrix holds these projections row upon row.
HO: dict[str, Any] = {"flip_sin_to_cos": False, "freq_shift": 1, "downsample_padding": 0, "norm_eps": 1e-6}

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


def copy(source: nn.Module, target: nn.Module) -> None:
    target.load_state_dict(source.state_dict())


def copy_attention(source: Any, target: Attention) -> None:
    copy(source.group_norm, target.norm)
    projections = (source.to_q, source.to_k, source.to_v)
    target.qkv.weight.data = torch.cat([projection.weight for projection in projections])
    target.qkv.bias.data = torch.cat([projection.bias for projection in projections])
    copy(source.to_out[0], target.out)


def copy_block(source: Any, target: ResBlock, projections: dict[int, nn.Linear]) -> None:
    for name in ("norm1", "conv1", "norm2", "conv2"):
        copy(getattr(source, name), getattr(target, name))
    if source.conv_shortcut is not None:
        copy(source.conv_shortcut, target.shortcut)
    projections[target.number] = source.time_emb_proj


def copy_unet(source: Any, target: UNet) -> None:
    projections: dict[int, nn.Linear] = {}
    for theirs, ours in [
        *zip(source.down_blocks, target.down, strict=True),
        *zip(source.up_blocks, target.up, strict=True),
    ]:
        for a, b in zip(theirs.resnets, ours.blocks, strict=True):
            copy_block(a, b, projections)
        for a, b in zip(getattr(theirs, "attentions", []), ours.attention, strict=True):
            copy_attention(a, b)
        steps = getattr(theirs, "downsamplers", None) or getattr(theirs, "upsamplers", None)
        assert (steps is None) == (ours.resample is None)
        if isinstance(ours.resample, ResBlock):
            copy_block(steps[0], ours.resample, projections)
        elif ours.resample is not None:
            copy(steps[0].conv, ours.resample.conv)
    copy_block(source.mid_block.resnets[0], target.middle[0], projections)
    copy_attention(source.mid_block.attentions[0], target.middle[1])
    copy_block(source.mid_block.resnets[1], target.middle[2], projections)
    ordered = [projections[number] for number in range(len(target.embedding_widths))]
    target.embedding_projection.weight.data = torch.cat([layer.weight for layer in ordered])
    target.embedding_projection.bias.data = torch.cat([layer.bias for layer in ordered])
    copy(source.conv_in, target.conv_in)
    copy(source.conv_norm_out, target.norm_out)
    copy(source.conv_out, target.conv_out)
    copy(source.time_embedding.linear_1, target.time_mlp[0])
    copy(source.time_embedding.linear_2, target.time_mlp[2])


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
