"""Arrays as pictures that a person can look at: single ones, grids, and PNG files that are whole or not there."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ddpm.errors import DataError, RunError
from ddpm.files import write_atomically

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
SMALLEST_CELL = 32
"""Pictures of a grid are enlarged by a whole factor until their longer side has this many pixels."""

PAPER = 255
POINTS_SIDE = 384


def to_image(
    picture: NDArray[Any], *, levels: int | None = 256, value_range: tuple[float, float] = (0.0, 255.0)
) -> Image.Image:
    """Return one picture [H, W, C] of a store as an image.

    16-bit gray stays 16 bits (mode I;16). Everything else has 8: other numbers of levels are scaled to 0 to 255 (of 17
    levels, 16 is white), float values from `value_range`; values outside are clipped.

    Args:
        picture: C is 1, 3 or 4; uint8, uint16 or float.
        levels: number of values a channel can take, as in `Store.levels`; None for float.
        value_range: black and white, used where `levels` is None.

    Raises:
        DataError: if it has another shape.
    """
    if picture.ndim != 3 or picture.shape[2] not in MODES:
        raise DataError(f"an array {list(picture.shape)} is no picture; expected [H, W, C] with C = 1, 3 or 4")
    if levels == 65536 and picture.shape[2] == 1:
        return Image.fromarray(picture[..., 0].astype(np.uint16))
    if levels != 256 or picture.dtype != np.uint8:
        low, high = (0.0, levels - 1.0) if levels is not None else value_range
        scale = 255.0 / (high - low) if high > low else 0.0
        picture = np.rint(np.clip((picture.astype(np.float64) - low) * scale, 0, 255)).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(picture[..., 0] if picture.shape[2] == 1 else picture))


def render_grid(
    pictures: NDArray[Any],
    columns: int | None = None,
    *,
    levels: int | None = 256,
    value_range: tuple[float, float] = (0.0, 255.0),
    gap: int = 2,
) -> Image.Image:
    """Return pictures [K, H, W, C] side by side on white, row by row; 2-D points [K, 1, 1, 2] as a scatter plot.

    Args:
        pictures: as the network sees them.
        columns: pictures a row; None: as square as it gets.
        levels: as for `to_image`; the grid itself has 8 bits.
        value_range: as for `to_image`.
        gap: white pixels between pictures.

    Raises:
        DataError: if there is no picture, or a shape that is none.
    """
    if len(pictures) == 0:
        raise DataError("a grid needs at least one picture")
    if pictures.shape[1:] == (1, 1, 2):
        return render_points(pictures.reshape(-1, 2), value_range)
    count, height, width, channels = pictures.shape
    columns = min(count, columns or math.ceil(math.sqrt(count)))
    rows = math.ceil(count / columns)
    scale = max(1, math.ceil(SMALLEST_CELL / max(height, width)))
    cell_height, cell_width = height * scale + gap, width * scale + gap
    mode = MODES.get(channels, "L")
    paper = PAPER if channels == 1 else (PAPER,) * len(mode)
    grid = Image.new(mode, (columns * cell_width + gap, rows * cell_height + gap), paper)
    for i, picture in enumerate(pictures):
        if levels == 65536:
            picture = np.rint(picture / 257).astype(np.uint8)
        image = to_image(picture, levels=256 if levels == 65536 else levels, value_range=value_range)
        image = image.resize((width * scale, height * scale), Image.Resampling.NEAREST)
        grid.paste(image, (gap + i % columns * cell_width, gap + i // columns * cell_height))
    return grid


def render_points(points: NDArray[Any], value_range: tuple[float, float], side: int = POINTS_SIDE) -> Image.Image:
    """Return points [N, 2] in the plane as a gray image; dark where many lie, the second axis upwards.

    Args:
        points: those outside the range lie on the edge.
        value_range: of both axes.
        side: pixels of each.
    """
    low, high = value_range
    scale = (side - 1) / (high - low if high > low else 1.0)
    cells = np.clip(np.rint((points.astype(np.float64) - low) * scale), 0, side - 1).astype(np.int64)
    counts = np.bincount(cells[:, 1] * side + cells[:, 0], minlength=side**2)
    padded = np.pad(counts.reshape(side, side)[::-1], 1)
    dots = sum(  # each point is a dot of 3x3 pixels: a single one is lost on a screen
        padded[down : down + side, right : right + side] for down in range(3) for right in range(3)
    )
    return Image.fromarray(np.rint(PAPER * 0.5 ** np.asarray(dots)).astype(np.uint8))


def save_png(image: Image.Image, path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write a PNG with text chunks; the file is complete or not there, also after a crash.

    Args:
        image: what `to_image` or `render_grid` returned.
        path: file to write or replace.
        metadata: keys (1 to 79 Latin letters) and texts.

    Raises:
        RunError: if it cannot be written.
    """
    texts = PngInfo()
    for key, text in (metadata or {}).items():
        texts.add_text(key, text)
    try:
        write_atomically(path, lambda part: image.save(part, "PNG", pnginfo=texts))
    except OSError as error:
        raise RunError(f"cannot write the picture '{path}': {error.strerror or error}; free some space") from error


def save_tiff(
    picture: NDArray[Any],
    path: Path,
    *,
    levels: int | None = 256,
    value_range: tuple[float, float] = (0.0, 255.0),
    description: str = "",
) -> None:
    """Write one picture [H, W, C] as a TIFF; one channel of floating point keeps its own values, as 16-bit gray does.

    Args:
        picture: as for `to_image`, which everything else goes through.
        path: file to write or replace.
        levels: as for `to_image`.
        value_range: as for `to_image`.
        description: ASCII text of the ImageDescription tag.

    Raises:
        RunError: if it cannot be written.
    """
    if picture.dtype == np.float32 and picture.ndim == 3 and picture.shape[2] == 1:
        image = Image.fromarray(np.ascontiguousarray(picture[..., 0]))
    else:
        image = to_image(picture, levels=levels, value_range=value_range)
    try:
        write_atomically(path, lambda part: image.save(part, "TIFF", description=description))
    except OSError as error:
        raise RunError(f"cannot write the picture '{path}': {error.strerror or error}; free some space") from error
