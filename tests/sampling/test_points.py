"""Samples of points in the plane: a table or an array, a scatter plot, and a film of points, not of pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddpm.cli.main import main
from ddpm.codec import PixelCodec
from ddpm.engine import choose_engine
from ddpm.model import Model
from ddpm.sampling import render_frames, render_strip
from ddpm.sampling.films import Moment
from ddpm.training.preview import Shown, draw_preview

Capture = pytest.CaptureFixture[str]


def test_points_become_a_table_and_a_scatter_plot(trained_points: Path, tmp_path: Path, capsys: Capture) -> None:
    main(["sample", str(trained_points), "--out", str(tmp_path), "--steps", "2"])
    assert {file.name for file in tmp_path.iterdir()} == {"points.csv", "grid.png", "recipe.json"}
    header, *rows = (tmp_path / "points.csv").read_text().splitlines()
    assert header == "x,y"
    assert len(rows) == 2000
    assert f"2,000 points and grid.png in {tmp_path}" in capsys.readouterr().err
    with Image.open(tmp_path / "grid.png") as plot:
        assert plot.size == (384, 384)


def test_points_as_an_array_are_those_of_the_table(trained_points: Path, tmp_path: Path) -> None:
    common = [str(trained_points), "-n", "5", "--steps", "2", "--precision", "float32"]
    main(["sample", *common, "--out", str(tmp_path / "table")])
    main(["sample", *common, "--out", str(tmp_path / "array"), "--format", "npy"])
    array = np.load(tmp_path / "array/points.npy")
    assert array.shape == (5, 2)
    table = np.loadtxt(tmp_path / "table/points.csv", delimiter=",", skiprows=1)
    np.testing.assert_allclose(array, table, rtol=1e-5)
    assert not (tmp_path / "array/points.csv").exists()


def test_points_as_tiff_are_refused(trained_points: Path, tmp_path: Path, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["sample", str(trained_points), "--format", "tiff", "--out", str(tmp_path / "out")])
    assert caught.value.code == 2
    assert "points in the plane are no TIFF" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_film_of_points_is_a_scatter_plot_a_frame(trained_points: Path, tmp_path: Path) -> None:
    main(["sample", str(trained_points), "-n", "50", "--steps", "3", "--film", "gif", "--out", str(tmp_path)])
    with Image.open(tmp_path / "film.gif") as film:
        assert film.n_frames == 4
        assert film.width > 2 * 380
        dark = np.asarray(film.convert("L")) < 200
    assert 100 < dark[20:, :384].sum() < 50 * 9 + 1  # 50 dots of at most 3x3 pixels, and no picture of two gray values


@pytest.mark.parametrize("render", [render_strip, lambda *given: render_frames(*given)[0]])
def test_noise_has_room_in_the_plane(render: Callable[..., Image.Image]) -> None:
    """x_T ~ N(0, I) reaches beyond the range of the data: its points are not heaped at the edge."""
    data = PixelCodec(None, (10.0, 20.0), "float32")
    points = np.array([[15.0, 15.0], [15.0 + 5 * 2.2, 15.0]], np.float32).reshape(-1, 1, 1, 2)
    sheet = np.asarray(render([Moment(9.0, points, points)], data).convert("L"))
    below_text = sheet[20:, :]
    one_side = 120 if render is render_strip else 384
    left = 56 if render is render_strip else 0
    x = np.flatnonzero((below_text[: one_side - 2, left : left + one_side] < 200).any(0))
    middle, right = x[x < 0.7 * one_side].mean(), x[x > 0.7 * one_side].mean()
    assert middle == pytest.approx(one_side / 2, abs=1.5)
    assert right == pytest.approx(one_side / 2 * (1 + 2.2 / 2.6), abs=1.5)


def test_previews_are_scatter_plots(trained_points: Path, tmp_path: Path) -> None:
    model = Model.load(trained_points)
    draw_preview([model, model], Shown(50), 0, choose_engine("cpu", "float32")).save(tmp_path / "preview.png")
    with Image.open(tmp_path / "preview.png") as image:
        assert image.size == (384 + 8 + 384, 384)
