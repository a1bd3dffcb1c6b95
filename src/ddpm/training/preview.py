"""Preview grids: the same noise at every step, so that one sees the network learn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ddpm.data import render_grid, save_png
from ddpm.engine import Engine
from ddpm.model import Model

_STEPS = 20  # a preview shows progress, and must not cost more than some training steps


def save_preview(path: Path, models: Sequence[Model], count: int, seed: int, engine: Engine) -> None:
    """Sample `count` pictures of each model from the same noise, and write them as grids side by side.

    Args:
        path: of the PNG.
        models: raw weights and average early in a run, then the average alone.
        count: pictures of each.
        seed: of the noise.
        engine: in which precision.
    """
    from PIL import Image

    grids = []
    for model in models:
        with engine.autocast():
            pictures = model.within(_STEPS).sample(count, seed=seed)
        codec = model.codec
        grids.append(render_grid(pictures, levels=codec.levels, value_range=codec.value_range).convert("RGB"))
    gap = 8 if len(grids) > 1 else 0
    width = sum(grid.width for grid in grids) + gap * (len(grids) - 1)
    sheet = Image.fromarray(np.full((grids[0].height, width, 3), 255, dtype=np.uint8))
    left = 0
    for grid in grids:
        sheet.paste(grid, (left, 0))
        left += grid.width + gap
    save_png(sheet, path)
