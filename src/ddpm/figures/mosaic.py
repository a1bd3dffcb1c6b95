"""Pictures side by side in one set of axes, with names of rows and columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ddpm.figures.style import Palette

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_GAP = 0.08  # of a picture's side


def draw_mosaic(axes: Axes, palette: Palette, x: Tensor, *, columns: Sequence[str], rows: Sequence[str]) -> None:
    """Draw pictures [R, C, channels, H, W], where -1 is black and 1 white; values outside are clipped.

    Args:
        axes: to draw in.
        palette: its paper shows between the pictures.
        x: one, three or four channels.
        columns: C names, above.
        rows: R names, at the left.
    """
    height, width = x.shape[-2:]
    for i, row in enumerate(x):
        for k, picture in enumerate(row):
            left, top = k * (1 + _GAP) * width, i * (1 + _GAP) * height
            extent = (left, left + width, top + height, top)
            axes.imshow(as_colours(picture), extent=extent, interpolation="nearest")
    axes.set(
        xlim=(0, (1 + _GAP) * width * len(columns)),
        ylim=((1 + _GAP) * height * len(rows), 0),
        xticks=[(k * (1 + _GAP) + 0.5) * width for k in range(len(columns))],
        yticks=[(i * (1 + _GAP) + 0.5) * height for i in range(len(rows))],
        xticklabels=columns,
        yticklabels=rows,
    )
    axes.tick_params(length=0)
    axes.xaxis.tick_top()
    for spine in axes.spines.values():
        spine.set_visible(False)


def as_colours(picture: Tensor) -> NDArray[np.float64]:
    """Return a picture [C, H, W] in [-1, 1] as colours [H, W, 3 or 4] in [0, 1]."""
    values = (picture.detach().double().cpu().clamp(-1, 1).numpy() + 1) / 2
    if len(values) == 1:
        values = np.repeat(values, 3, axis=0)
    return np.ascontiguousarray(values.transpose(1, 2, 0))
