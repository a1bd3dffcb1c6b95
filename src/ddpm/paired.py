"""The picture that another one is made from: gray, at low resolution, with a part masked; or any other of its size."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from ddpm.conditions_config import PairedPicture
from ddpm.diffusion.noise import stream

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as the data are turned to gray


def derived(paired: PairedPicture, x_0: Tensor, holes: Tensor) -> Tensor:
    """Return the picture that x_0 is to be made from, as `Condition.picture`: [B, C' + 1, H, W].

    Args:
        paired: which: "gray", "low_resolution" or "mask".
        x_0: float32 [B, C, H, W].
        holes: bool [B, H, W], what a mask hides; other kinds take no notice of it.
    """
    if paired.kind == "gray":
        return with_place(gray(x_0))
    if paired.kind == "low_resolution":
        return with_place(low_resolution(x_0, paired.factor))
    return masked(x_0, holes)


def with_place(picture: Tensor) -> Tensor:
    """Return a picture [B, C', H, W] that is known everywhere, with the channel that says so."""
    return torch.cat([picture, torch.ones_like(picture[:, :1])], dim=1)


def gray(x_0: Tensor) -> Tensor:
    """Return the luma of pictures of 3 or 4 channels, [B, 1, H, W]; opacity does not count."""
    weights = torch.tensor(_LUMA, dtype=x_0.dtype, device=x_0.device).reshape(1, 3, 1, 1)
    return (x_0[:, :3] * weights).sum(1, keepdim=True)


def low_resolution(x_0: Tensor, factor: int) -> Tensor:
    """Return pictures whose squares of `factor` pixels have one colour, their mean; H and W are multiples of it."""
    return enlarged(functional.avg_pool2d(x_0, factor), factor)


def enlarged(x_0: Tensor, factor: int) -> Tensor:
    """Return small pictures [B, C, H, W] with each pixel repeated, [B, C, factor H, factor W]."""
    return x_0.repeat_interleave(factor, dim=2).repeat_interleave(factor, dim=3)


def masked(x_0: Tensor, holes: Tensor) -> Tensor:
    """Return pictures with zeros in their holes (bool [B, H, W]), and the channel that says where they are known."""
    known = (~holes).to(x_0.dtype).unsqueeze(1)
    return torch.cat([x_0 * known, known], dim=1)


def random_holes(seed: int, pictures: Sequence[int], height: int, width: int) -> Tensor:
    """Return a rectangle for each picture, between 1/4 and 3/4 of its sides: bool [B, H, W], by (seed, number)."""
    holes = torch.zeros(len(pictures), height, width, dtype=torch.bool)
    for hole, picture in zip(holes, pictures, strict=True):
        source = stream(seed, "mask", int(picture))
        sides = [int(source.integers(max(1, side // 4), max(1, 3 * side // 4) + 1)) for side in (height, width)]
        top, left = (
            int(source.integers(0, side - length + 1)) for side, length in zip((height, width), sides, strict=True)
        )
        hole[top : top + sides[0], left : left + sides[1]] = True
    return holes
