"""The networks of other programs with our weights, or the other way round: so that both compute the same."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import UNet2DModel
from torch import nn

from ddpm.networks import UNet
from ddpm.networks.blocks import Attention, Downsample, ResBlock, Upsample
from ddpm.networks.levels import Level

EAGER = (
    "ours, default",
    "ours, float32",
    "diffusers, default",
    "diffusers, channels_last",
    "diffusers, bfloat16 autocast, channels_last",
)
"""Ways to run the two programs as they are, without compilation."""

# diffusers' defaults follow other codes than Ho's. The published google/ddpm-cifar10-32 sets, as here:
#   flip_sin_to_cos=False   sines before cosines in the time embedding
#   freq_shift=1            frequencies end exactly at 1/10000: exponents i / (half - 1)
#   downsample_padding=0    the strided convolution is padded at the right and the bottom only (TensorFlow's SAME)
#   norm_eps=1e-6           epsilon of GroupNorm in TensorFlow's contrib.layers (torch and diffusers: 1e-5)
# diffusers projects the time embedding inside each block; here one matrix holds these projections row upon row.
HO: dict[str, Any] = {"flip_sin_to_cos": False, "freq_shift": 1, "downsample_padding": 0, "norm_eps": 1e-6}


def reference_network(dropout: float = 0.0) -> UNet2DModel:
    """Return the network of google/ddpm-cifar10-32, with random weights."""
    torch.manual_seed(0)
    network = UNet2DModel(
        sample_size=32,
        block_out_channels=(128, 256, 256, 256),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=None,
        dropout=dropout,
        **HO,
    )
    return network.eval()


def _copy(source: nn.Module, target: nn.Module) -> None:
    target.load_state_dict(source.state_dict())


def _copy_attention(source: Any, target: nn.Module) -> None:
    assert isinstance(target, Attention)
    _copy(source.group_norm, target.norm)
    projections = (source.to_q, source.to_k, source.to_v)
    target.qkv.weight.data = torch.cat([projection.weight for projection in projections])
    target.qkv.bias.data = torch.cat([projection.bias for projection in projections])
    _copy(source.to_out[0], target.out)


def _copy_block(source: Any, target: nn.Module, projections: dict[int, nn.Linear]) -> None:
    assert isinstance(target, ResBlock)
    for name in ("norm1", "conv1", "norm2", "conv2"):
        _copy(getattr(source, name), getattr(target, name))
    if source.conv_shortcut is not None:
        _copy(source.conv_shortcut, target.shortcut)
    projections[target.number] = source.time_emb_proj


def copy_unet(source: Any, target: UNet) -> None:
    """Copy the weights of diffusers' UNet2DModel into a U-Net of ours of the same shape."""
    projections: dict[int, nn.Linear] = {}
    for theirs, ours in [
        *zip(source.down_blocks, target.down, strict=True),
        *zip(source.up_blocks, target.up, strict=True),
    ]:
        assert isinstance(ours, Level)
        for a, b in zip(theirs.resnets, ours.blocks, strict=True):
            _copy_block(a, b, projections)
        for a, b in zip(getattr(theirs, "attentions", []), ours.attention, strict=True):
            _copy_attention(a, b)
        steps: Any = getattr(theirs, "downsamplers", None) or getattr(theirs, "upsamplers", None)
        assert (steps is None) == (ours.resample is None)
        if isinstance(ours.resample, ResBlock):
            _copy_block(steps[0], ours.resample, projections)
        elif ours.resample is not None:
            assert isinstance(ours.resample, Downsample | Upsample)
            _copy(steps[0].conv, ours.resample.conv)
    _copy_block(source.mid_block.resnets[0], target.middle[0], projections)
    _copy_attention(source.mid_block.attentions[0], target.middle[1])
    _copy_block(source.mid_block.resnets[1], target.middle[2], projections)
    ordered = [projections[number] for number in range(len(target.embedding_widths))]
    target.embedding_projection.weight.data = torch.cat([layer.weight for layer in ordered])
    target.embedding_projection.bias.data = torch.cat([layer.bias for layer in ordered])
    _copy(source.conv_in, target.conv_in)
    _copy(source.conv_norm_out, target.norm_out)
    _copy(source.conv_out, target.conv_out)
    _copy(source.time_embedding.linear_1, target.time_mlp[0])
    _copy(source.time_embedding.linear_2, target.time_mlp[2])
