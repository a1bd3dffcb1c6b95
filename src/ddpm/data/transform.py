"""From a picture's own numbers to what the network sees: alpha, channels, size, depth, in this order.

- Alpha is composited on the stated background, unless the data are RGBA. Gray pictures use the background's gray.
- Colour becomes gray by its luma, (19595 R + 38470 G + 7471 B) / 65536; gray becomes colour by repetition.
- A picture of the right size stays untouched. Else ``crop`` takes the largest centred part of the target's shape,
  ``pad`` scales the whole picture and fills up with the background, ``stretch`` ignores the shape; the rest is one pass
  of an antialiased filter, 8-bit pictures in integers, deeper ones in float32 and clipped to their range.
- 16 bits become 8 by rounding v / 257; float becomes 8 bits only from 0 to 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ddpm.config import Fit
from ddpm.data.decode import BadPictureError, Depth

ChannelKind = Literal["gray", "rgb", "rgba"]
Filter = Literal["lanczos", "bicubic", "bilinear", "box", "nearest"]

CHANNELS: dict[ChannelKind, int] = {"gray": 1, "rgb": 3, "rgba": 4}
LUMA = (19595, 38470, 7471)
FILTERS: dict[Filter, Image.Resampling] = {
    "lanczos": Image.Resampling.LANCZOS,
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "box": Image.Resampling.BOX,
    "nearest": Image.Resampling.NEAREST,
}


@dataclass(frozen=True, slots=True)
class Transform:
    """How pictures become what the network sees; equal transforms of equal files give equal numbers."""

    height: int
    width: int
    channels: ChannelKind
    depth: Depth
    fit: Fit
    filter: Filter
    background: tuple[int, int, int]

    @property
    def shape(self) -> tuple[int, int, int]:
        """[H, W, C] of every picture that comes out."""
        return self.height, self.width, CHANNELS[self.channels]

    def __call__(self, values: NDArray[Any]) -> tuple[NDArray[Any], tuple[str, ...]]:
        """Return a picture [H, W, C] as the network sees it, and what was done to it in words."""
        done: list[str] = []
        if self.channels != "rgba" and values.shape[2] in (2, 4):
            values = composite(values, self.background)
            done.append(f"with alpha composited on {name_colour(self.background)}")
        values = self._with_channels(values, done)
        values = self._fitted(values, done)
        if values.dtype != self.depth:
            done.append(f"{values.dtype} rounded to {self.depth}")
            values = to_depth(values, self.depth)
        return values, tuple(done)

    def _with_channels(self, values: NDArray[Any], done: list[str]) -> NDArray[Any]:
        if self.channels == "gray" and values.shape[2] == 3:
            done.append("colour turned to gray")
            return to_gray(values)
        if self.channels != "gray" and values.shape[2] < 3:
            done.append("gray repeated to RGB")
            values = values[..., [0, 0, 0, *range(1, values.shape[2])]]
        if self.channels == "rgba" and values.shape[2] == 3:
            opaque = np.full((*values.shape[:2], 1), full_scale(values.dtype), values.dtype)
            values = np.concatenate([values, opaque], axis=2)
        return values

    def _fitted(self, values: NDArray[Any], done: list[str]) -> NDArray[Any]:
        height, width = values.shape[:2]
        if (height, width) == (self.height, self.width):
            return values
        if height < self.height or width < self.width:
            done.append(f"smaller than {self.height}x{self.width}, enlarged")
        resampling = FILTERS[self.filter]
        if self.fit == "pad":
            return self._padded(values, resampling)
        if self.fit == "crop":
            left, top, right, bottom = crop_box(height, width, self.height, self.width)
            values = values[top:bottom, left:right]
        return resample(values, self.height, self.width, resampling)

    def _padded(self, values: NDArray[Any], resampling: Image.Resampling) -> NDArray[Any]:
        height, width, channels = values.shape
        scale = min(self.height / height, self.width / width)
        inner_height = min(self.height, max(1, round(height * scale)))
        inner_width = min(self.width, max(1, round(width * scale)))
        inner = resample(values, inner_height, inner_width, resampling)
        canvas = np.empty((self.height, self.width, channels), values.dtype)
        canvas[...] = background_in(self.background, channels, values.dtype)
        top, left = (self.height - inner_height) // 2, (self.width - inner_width) // 2
        canvas[top : top + inner_height, left : left + inner_width] = inner
        return canvas


def crop_box(height: int, width: int, target_height: int, target_width: int) -> tuple[int, int, int, int]:
    """Return (left, top, right, bottom) of the largest centred part that has the target's shape, in whole pixels."""
    box_width = min(width, max(1, round(height * target_width / target_height)))
    box_height = min(height, max(1, round(width * target_height / target_width)))
    left, top = (width - box_width) // 2, (height - box_height) // 2
    return left, top, left + box_width, top + box_height


def resample(values: NDArray[Any], height: int, width: int, resampling: Image.Resampling) -> NDArray[Any]:
    """Scale a picture [H, W, C] to [height, width, C] in its own depth, antialiased."""
    if values.shape[:2] == (height, width):
        return values
    if values.dtype == np.uint8:
        image = Image.fromarray(np.ascontiguousarray(values[..., 0] if values.shape[2] == 1 else values))
        scaled = np.asarray(image.resize((width, height), resampling))
        return scaled.reshape(height, width, -1)
    deep = values.astype(np.float32)
    alpha = deep[..., 3:] / np.float32(full_scale(values.dtype)) if values.shape[2] == 4 else None
    if alpha is not None:  # transparent pixels must not bleed into their neighbours
        deep = np.concatenate([deep[..., :3] * alpha, deep[..., 3:]], axis=2)
    planes = [
        np.asarray(Image.fromarray(deep[..., c]).resize((width, height), resampling)) for c in range(deep.shape[2])
    ]
    scaled = np.stack(planes, axis=2)
    if alpha is not None:
        share = np.maximum(scaled[..., 3:] / np.float32(full_scale(values.dtype)), np.float32(1e-6))
        scaled = np.concatenate([scaled[..., :3] / share, scaled[..., 3:]], axis=2)
    # Lanczos overshoots at edges: the range stays what it was.
    if values.dtype == np.uint16:
        whole: NDArray[Any] = np.rint(np.clip(scaled, 0, 65535)).astype(np.uint16)
        return whole
    clipped: NDArray[Any] = np.clip(scaled, values.min(), values.max()).astype(np.float32)
    return clipped


def composite(values: NDArray[Any], background: tuple[int, int, int]) -> NDArray[Any]:
    """Return a picture [H, W, 1 or 3] without the alpha of [H, W, 2 or 4]: c a + b (1 - a), rounded to nearest."""
    colour, alpha = values[..., :-1], values[..., -1:]
    full = full_scale(values.dtype)
    ground = background_in(background, colour.shape[2], values.dtype)
    if values.dtype.kind == "f":
        mixed: NDArray[Any] = (colour * alpha + ground * (1 - alpha)).astype(np.float32)
        return mixed
    wide = colour.astype(np.uint64) * alpha + ground.astype(np.uint64) * (np.uint64(full) - alpha)
    rounded: NDArray[Any] = ((wide + np.uint64(full // 2)) // np.uint64(full)).astype(values.dtype)
    return rounded


def to_gray(values: NDArray[Any]) -> NDArray[Any]:
    """Return the luma [H, W, 1] of a colour picture [H, W, 3]."""
    if values.dtype.kind == "f":
        weights = np.asarray(LUMA, dtype=np.float32) / np.float32(65536)
        luma: NDArray[Any] = (values @ weights)[..., None].astype(np.float32)
    else:
        wide = values.astype(np.uint64) @ np.asarray(LUMA, dtype=np.uint64)
        luma = ((wide + np.uint64(0x8000)) >> np.uint64(16)).astype(values.dtype)[..., None]
    return luma


def to_depth(values: NDArray[Any], depth: Depth) -> NDArray[Any]:
    """Return a picture in another depth; the full scale of one is the full scale of the other.

    Raises:
        BadPictureError: for float values outside 0 to 1, whose scale nobody knows.
    """
    if values.dtype.kind == "f" and (values.min() < 0 or values.max() > 1):
        raise BadPictureError("float values outside 0 to 1 among pictures of whole numbers")
    scaled = values.astype(np.float64) * (full_scale(np.dtype(depth)) / full_scale(values.dtype))
    return (scaled if depth == "float32" else np.rint(scaled)).astype(depth)


def full_scale(dtype: np.dtype[Any]) -> int:
    """Return what white is: 255, 65535, or 1 for float."""
    return {"uint8": 255, "uint16": 65535}.get(dtype.name, 1)


def background_in(background: tuple[int, int, int], channels: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return the background [channels] in a depth; gray by its luma, transparent where there is alpha."""
    colour = to_gray(np.asarray(background, dtype=np.uint8)[None, None])[0, 0] if channels <= 2 else background
    wide = np.asarray(colour, dtype=np.float64) * (full_scale(dtype) / 255)
    values = wide if dtype.kind == "f" else np.rint(wide)
    return (values if channels in (1, 3) else np.append(values, 0)).astype(dtype)


def name_colour(colour: tuple[int, int, int]) -> str:
    """Return ``white``, ``black`` or ``rgb(r, g, b)``."""
    red, green, blue = colour
    return {(255, 255, 255): "white", (0, 0, 0): "black"}.get(colour, f"rgb({red}, {green}, {blue})")
