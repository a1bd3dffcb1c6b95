"""The picture that another one is made from: gray, at low resolution, with a part masked; or any other of its size."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from ddpm.config.conditions import PairedPicture
from ddpm.data.decode import BadPictureError, read_pixels
from ddpm.data.transform import full_scale, to_gray
from ddpm.diffusion.noise import stream
from ddpm.errors import SamplingError

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


@lru_cache(maxsize=256)
def given_file(paired: PairedPicture, file: Path, size: tuple[int, int]) -> Tensor:
    """Return the picture of a file as the network reads it, [C' + 1, H, W]; see `given`.

    Raises:
        SamplingError: if it cannot be read, or does not fit.
    """
    try:
        with open(file, "rb") as opened:
            pixels = read_pixels(opened)
    except (OSError, BadPictureError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise SamplingError(f"'{file}' cannot be read as a picture ({reason}); expected one to begin with") from error
    return given(paired, pixels.values, size, str(file))


def given(paired: PairedPicture, values: NDArray[Any], size: tuple[int, int], name: str = "the picture") -> Tensor:
    """Return a picture that somebody asks to be worked on, as the network reads it, [C' + 1, H, W].

    What training derived from a picture, sampling derives from one of full size: colour becomes gray, a large picture
    one of low resolution. Of a mask, what is transparent is to be filled in.

    Args:
        paired: what the model reads.
        values: [h, w, C] in uint8, uint16, or float32 from 0 to 1; with alpha as its second or fourth channel.
        size: (H, W) of the model's pictures.
        name: of the picture, for messages.

    Raises:
        SamplingError: if it has another size, or a mask has nothing to fill in.
    """
    height, width = size
    small = (height // paired.factor, width // paired.factor)
    sizes = [size, small] if paired.kind == "low_resolution" else [size]
    if values.ndim != 3 or values.shape[:2] not in sizes:
        wanted = " or ".join(f"{rows}x{columns}" for rows, columns in sizes)
        found = "x".join(map(str, values.shape[:2]))
        raise SamplingError(f"{name} is {found} pixels, this model begins with {wanted}; nothing is resized silently")
    alpha = values[..., -1] if values.shape[2] in (2, 4) else None
    if paired.kind == "mask":
        holes = None if alpha is None else torch.from_numpy(2 * alpha.astype(np.float64) < full_scale(values.dtype))
        if holes is None or not bool(holes.any()):
            raise SamplingError(f"{name} has no transparent part; make transparent what is to be filled in")
        return masked(_in_range(values, paired.channels).unsqueeze(0), holes.unsqueeze(0))[0]
    picture = _in_range(values, paired.channels).unsqueeze(0)
    if paired.kind == "low_resolution":
        factor = paired.factor
        picture = enlarged(picture, factor) if values.shape[:2] == small else low_resolution(picture, factor)
    return with_place(picture)[0]


def _in_range(values: NDArray[Any], channels: int) -> Tensor:
    """Return a picture [h, w, C] with `channels` channels, float32 [channels, h, w] in [-1, 1]."""
    colour = values[..., :3] if values.shape[2] >= 3 else values[..., :1]
    if channels == 1 and colour.shape[2] == 3:
        colour = to_gray(np.ascontiguousarray(colour))
    if channels >= 3 and colour.shape[2] == 1:
        colour = np.repeat(colour, 3, axis=2)
    if channels == 4:
        opaque = np.full_like(colour[..., :1], full_scale(values.dtype))
        colour = np.concatenate([colour, values[..., 3:] if values.shape[2] == 4 else opaque], axis=2)
    scaled = np.ascontiguousarray(colour.transpose(2, 0, 1)).astype(np.float32) / full_scale(values.dtype)
    return torch.from_numpy(scaled) * 2 - 1
