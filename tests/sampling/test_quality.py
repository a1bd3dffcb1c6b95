from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import TINY
from ddpm.codec import Pictures
from ddpm.config import merge
from ddpm.data.progress import Progress, silent
from ddpm.errors import SamplingError
from ddpm.evaluation.extractors.features import Pixels
from ddpm.evaluation.scores.spread import spread
from ddpm.model import Model
from ddpm.sampling.comparing import parse_steps, plan_comparison
from ddpm.sampling.frechet_score import FrechetScore
from ddpm.sampling.quality import Cell, Comparison, compare, table
from ddpm.training.plan import make_plan
from ddpm.training.run import run


class Brightness:
    """A score that a test can compute itself."""

    name, floor = "brightness", 1.0

    def __call__(self, pictures: Pictures) -> tuple[float, float]:
        return float(pictures.mean()), 0.5


def comparison(trained: Path, file: Path, **changes: Any) -> Comparison:
    asked: dict[str, Any] = {
        "samplers": ["ddim", "ddpm"],
        "steps": "2,4",
        "count": 6,
        "seed": 1,
        "data": None,
        "features": "pixels",
        "file": file,
        "device": "cpu",
        "progress": silent,
        **changes,
    }
    return replace(plan_comparison(trained, **asked), score=Brightness())


def test_every_cell_is_measured_and_none_twice(trained: Path, tmp_path: Path) -> None:
    file, bars = tmp_path / "cells.json", []

    @contextmanager
    def counted(total: int | None, description: str) -> Iterator[Progress]:
        bars.append(description)
        with silent(total, description) as shown:
            yield shown

    plan = comparison(trained, file)
    first = compare(plan, progress=counted, tell=print)
    cells = [next(first), next(first)]  # and then it is interrupted
    assert len(json.loads(file.read_text())["cells"]) == 2
    told: list[str] = []
    again = list(compare(plan, progress=counted, tell=told.append))
    assert again[:2] == cells
    assert [(cell.sampler, cell.steps, cell.evaluations) for cell in again] == [
        ("ddim", 2, 2),
        ("ddim", 4, 4),
        ("ddpm", 2, 2),
        ("ddpm", 4, 4),
    ]
    assert bars == ["ddim, 2 steps", "ddim, 4 steps", "ddpm, 2 steps", "ddpm, 4 steps"]
    assert told == [f"going on: 2 cells are in {file}"]
    with plan.engine.autocast():
        pictures = plan.models[3].sample(6, seed=1)
    assert again[3].score == pytest.approx(pictures.mean(), abs=0.05)


@pytest.mark.parametrize(("change", "said"), [({"count": 7}, "another number"), ({"seed": 2}, "another seed")])
def test_results_of_other_conditions_never_mix(
    trained: Path, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    file = tmp_path / "cells.json"
    next(compare(comparison(trained, file), progress=silent, tell=print))
    before = file.read_bytes()
    with pytest.raises(SamplingError, match=said):
        comparison(trained, file, **change)
    assert file.read_bytes() == before
    file.write_text("{}")
    with pytest.raises(SamplingError, match="is no file of"):
        comparison(trained, file)


def test_a_conditional_model_is_compared_with_its_own_guidance(tmp_path: Path) -> None:
    """Guidance runs the network with and without condition: two evaluations a step, which the cells count."""
    tree = merge(TINY, {"conditions": {"label": True}, "training": {"steps": 2}})
    deque(run(make_plan("digits", tree, preset="digits", out=tmp_path / "run")), maxlen=0)
    cells = list(compare(comparison(tmp_path / "run", tmp_path / "cells.json"), progress=silent, tell=print))
    model = Model.load(tmp_path / "run")
    assert model.sampling.guidance == 1.5
    assert [cell.evaluations for cell in cells] == [4, 8, 4, 8]
    for cell in cells:
        pictures = model.sample(6, steps=cell.steps, sampler=cell.sampler, seed=1)
        assert abs(cell.score - float(pictures.mean())) < 0.02 * float(pictures.max())  # the cells may be in bfloat16


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"samplers": ["dimm"]}, "did you mean 'ddim'"),
        ({"steps": "5,51"}, "51 sampling steps; expected 1 to 50"),
        ({"steps": "five"}, "steps 'five'"),
        ({"count": 0}, "0 pictures"),
        ({"seed": -1}, "seed -1"),
    ],
)
def test_impossible_comparisons_are_refused(trained: Path, tmp_path: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(SamplingError, match=said):
        comparison(trained, tmp_path / "cells.json", **change)
    assert list(tmp_path.iterdir()) == []


def test_steps_are_read_in_order_and_once() -> None:
    assert parse_steps("20, 5,20") == [20, 5]


def test_held_out_pictures_score_the_floor_and_worse_ones_more(trained: Path, tmp_path: Path) -> None:
    from ddpm.config import DataConfig
    from ddpm.data import open_store

    store = open_store("digits", DataConfig())
    score = FrechetScore(store, 200, Pixels())
    held_out = store.pictures[spread(store.held_out, 200)]
    value, error = score(held_out)
    assert value == pytest.approx(score.floor)
    assert 0 < error < value
    noisy = np.clip(held_out + np.random.default_rng(0).integers(0, 3, held_out.shape), 0, 16).astype(np.uint8)
    assert score(noisy)[0] > value + error


def test_the_table_marks_the_best_and_shows_the_floor() -> None:
    cells = [Cell("ddim", 5, 5, 1.0, 3.0, 0.1), Cell("heun", 5, 10, 2.0, 2.0, 0.1), Cell("ddim", 9, 9, 1.0, 1.5, 0.1)]
    lines = table(cells, Brightness()).splitlines()
    assert ["best" in line for line in lines] == [False, False, True, True, False]
    assert lines[-1].split()[-1] == "1"


def test_the_plot_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from PIL import Image

    from ddpm.sampling.quality import plot

    cells = [Cell("ddim", 5, 5, 1.0, 3.0, 0.1), Cell("ddim", 9, 9, 1.0, 1.5, 0.1), Cell("heun", 5, 10, 2.0, 2.0, 0.1)]
    plot(cells, Brightness(), tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as image:
        assert image.width > 600


def test_no_matplotlib_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from ddpm.sampling.quality import plot

    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(SamplingError, match=r"ddpm\[figures\]"):
        plot([], Brightness(), tmp_path / "plot.png")
