"""Preview grids: the same noise at every step, so that one sees the network learn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ddpm.codec import Pictures, PixelCodec
from ddpm.conditions import Condition
from ddpm.conditions.asked import Asked, draw, encode
from ddpm.conditions.of_data import DataConditions
from ddpm.data import Store, render_grid
from ddpm.engine import Engine
from ddpm.model import Model

if TYPE_CHECKING:
    from PIL import Image

_STEPS = 20  # a preview shows progress, and must not cost more than some training steps
_MOST_ROWS = 12  # classes that a preview shows


@dataclass(frozen=True, eq=False)
class Shown:
    """What a preview shows.

    Attributes:
        count: of pictures.
        condition: of each; None: as the model draws them.
        columns: pictures a row; None: as square as it gets.
        given: the pictures that these are made from, to stand beside them; None: there are none.
    """

    count: int
    condition: Condition | None = None
    columns: int | None = None
    given: Pictures | None = None


def shown_in_previews(
    store: Store, codec: PixelCodec, conditions: DataConditions | None, count: int, seed: int
) -> Shown:
    """Return what previews show: a row for each class, or held-out pictures beside what they are made from.

    Args:
        store: the data.
        codec: of its pictures.
        conditions: of the run; none: there are none.
        count: about how many pictures.
        seed: of the run.
    """
    if conditions is None or store.is_points:
        return Shown(count)
    spec = conditions.spec
    if spec.picture is not None:
        rows = np.resize(store.held_out, count)
        condition = conditions.of(rows, codec.encode(store.pictures[rows]), seed=seed, pictures=range(count))
        assert condition.picture is not None
        given = PixelCodec(256, (0.0, 255.0), "uint8").decode(condition.picture[:, : spec.picture.channels])
        return Shown(count, condition, given=given)
    if not spec.classes:
        return Shown(count)
    chosen = np.linspace(0, len(spec.classes) - 1, min(len(spec.classes), _MOST_ROWS)).round().astype(int)
    columns = max(1, count // len(chosen))
    asks: list[Asked] = []
    for row, label in enumerate(chosen):
        numbers = range(row * columns, (row + 1) * columns)
        asks += draw(spec, numbers, seed, labels=[spec.classes[int(label)]])
    return Shown(len(asks), encode(spec, asks), columns)


def draw_preview(models: Sequence[Model], shown: Shown, seed: int, engine: Engine) -> Image.Image:
    """Sample the pictures of each model from the same noise, and return them as grids side by side.

    Args:
        models: raw weights and average early in a run, then the average alone.
        shown: which pictures of each.
        seed: of the noise.
        engine: in which precision.
    """
    from PIL import Image

    grids = []
    if shown.given is not None:
        grids.append(render_grid(shown.given, shown.columns).convert("RGB"))
    for model in models:
        with engine.autocast():
            pictures = model.within(_STEPS).sample(shown.count, seed=seed, condition=shown.condition)
        codec = model.codec
        grid = render_grid(pictures, shown.columns, levels=codec.levels, value_range=codec.value_range)
        grids.append(grid.convert("RGB"))
    gap = 8 if len(grids) > 1 else 0
    width = sum(grid.width for grid in grids) + gap * (len(grids) - 1)
    sheet = Image.fromarray(np.full((grids[0].height, width, 3), 255, dtype=np.uint8))
    left = 0
    for grid in grids:
        sheet.paste(grid, (left, 0))
        left += grid.width + gap
    return sheet
