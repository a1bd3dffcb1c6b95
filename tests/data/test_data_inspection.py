"""What `inspect` finds, and the pictures that a person looks at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torture_folder import noise

from ddpm.config import DataConfig
from ddpm.data import inspect, open_store, render_grid, save_png, to_image
from ddpm.data.inspection import sparkline
from ddpm.errors import DataError, RunError


def store_of(tmp_path: Path, values: np.ndarray, labels: np.ndarray | None = None):
    if labels is None:
        np.save(tmp_path / "a.npy", values)
    else:
        np.savez(tmp_path / "a.npz", images=values, labels=labels)
    return open_store(tmp_path / ("a.npy" if labels is None else "a.npz"), DataConfig(), cache_dir=tmp_path / "c")


@pytest.mark.parametrize("kind", ["uint8", "uint16", "float32"])
def test_moments_and_histogram(kind: str, tmp_path: Path):
    values = noise(1100, 5, 6, 3, high=65536 if kind == "uint16" else 256)
    values = (values / 255).astype(np.float32) if kind == "float32" else values
    found = inspect(store_of(tmp_path, values))
    wide = values.astype(np.float64)
    np.testing.assert_allclose(found.mean, wide.mean(axis=(0, 1, 2)))
    np.testing.assert_allclose(found.std, wide.std(axis=(0, 1, 2)))
    assert found.histogram.shape == (3, 256)
    assert (found.histogram.sum(axis=1) == 1100 * 30).all()
    low, high = (0, 1) if kind == "float32" else (0, 65536 if kind == "uint16" else 256)
    expected = np.histogram(wide[..., 1], bins=256, range=(low, high))[0]
    assert np.abs(found.histogram[1] - expected).sum() <= (0 if kind != "float32" else 20)
    assert found.bin_edges[[0, -1]].tolist() == [low, high]
    assert found.warnings == ()


def test_digits():
    found = inspect(open_store("digits", DataConfig()))
    assert (found.count, found.train, found.held_out) == (1797, 1437, 360)
    assert found.classes["3"] == 183
    assert found.histogram.shape == (1, 17)
    assert found.warnings == ()
    text = "\n".join(found.lines())
    for words in ("1,797 pictures", "8x8 pixels, 1 channel", "17 levels", "9 180", "mean"):
        assert words in text


def test_duplicates_across_the_split_are_told(tmp_path: Path):
    values = noise(50, 6, 6)
    values[25:] = values[:25]
    found = inspect(store_of(tmp_path, values))
    assert len(found.duplicates) == 25
    assert any("25 pictures are exact copies" in warning for warning in found.warnings)
    assert any("both trained on and held out" in warning for warning in found.warnings)


def test_uneven_and_empty_classes(tmp_path: Path):
    values, labels = noise(1200, 4, 4), np.zeros(1200, np.int64)
    labels[:5] = 1
    (warning,) = inspect(store_of(tmp_path, values, labels)).warnings
    assert warning == "classes are uneven: '0' has 1,195 pictures, '1' only 5"


def test_few_and_constant_pictures(tmp_path: Path):
    values = noise(20, 4, 4)
    values[3] = 7
    found = inspect(store_of(tmp_path, values))
    assert found.constant == ("3",)
    assert any("20 pictures are few" in warning for warning in found.warnings)


def test_flip_warning_depends_on_the_pictures(tmp_path: Path):
    digits = open_store("digits", DataConfig())
    assert inspect(digits).warnings == ()
    (warning,) = inspect(digits, DataConfig(flip=True)).warnings
    assert "differ from their mirror images" in warning
    symmetric = store_of(tmp_path, noise(1200, 8, 8))
    found = inspect(symmetric, DataConfig(flip=True))
    assert found.asymmetry < 0.05
    assert "if the pictures hold text" in found.warnings[0]
    assert inspect(open_store("moons", DataConfig()), DataConfig(flip=True)).warnings == ()


def test_seventeen_levels_fill_the_range():
    picture = np.arange(17, dtype=np.uint8).reshape(1, 17, 1)
    shown = np.asarray(to_image(picture, levels=17))
    assert shown[0, 0] == 0
    assert shown[0, 16] == 255
    assert (np.diff(shown[0].astype(int)) >= 15).all()


def test_images_of_every_depth():
    rgb, rgba, gray = noise(5, 4, 3), noise(5, 4, 4), noise(5, 4, 1)
    assert to_image(rgb).mode == "RGB"
    assert to_image(rgba).mode == "RGBA"
    np.testing.assert_array_equal(np.asarray(to_image(gray)), gray[..., 0])
    deep = noise(5, 4, 1, high=65536)
    image = to_image(deep, levels=65536)
    assert image.mode == "I;16"
    np.testing.assert_array_equal(np.asarray(image), deep[..., 0])
    deep = noise(5, 4, 3, high=65536)
    np.testing.assert_array_equal(np.asarray(to_image(deep, levels=65536)), np.rint(deep / 257))
    floats = np.array([[[-3.0], [-1.0], [0.0], [1.0], [9.0]]], np.float32)
    assert np.asarray(to_image(floats, levels=None, value_range=(-1, 1))).tolist() == [[0, 0, 128, 255, 255]]
    assert np.asarray(to_image(floats * 0, levels=None, value_range=(0, 0))).max() == 0


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 2), (1, 4, 4, 3)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(DataError, match=r"expected \[H, W, C\]"):
        to_image(np.zeros(shape, np.uint8))


def test_grid_shows_every_pixel():
    pictures = noise(5, 6, 8, 3)
    grid = np.asarray(render_grid(pictures, 3, gap=2))
    assert grid.shape == (2 * (24 + 2) + 2, 3 * (32 + 2) + 2, 3)
    for i, picture in enumerate(pictures):
        top, left = 2 + i // 3 * 26, 2 + i % 3 * 34
        np.testing.assert_array_equal(grid[top : top + 24 : 4, left : left + 32 : 4], picture)
    assert (grid[28:, 70:] == 255).all()


def test_grid_of_deep_gray_and_of_points():
    deep = noise(4, 40, 40, 1, high=65536)
    grid = np.asarray(render_grid(deep, levels=65536))
    np.testing.assert_array_equal(grid[2:42, 2:42], np.rint(deep[0, ..., 0] / 257))
    points = open_store("moons", DataConfig())
    image = render_grid(points.pictures, levels=None, value_range=points.value_range)
    assert image.size == (384, 384)
    dark = np.asarray(image) < 128
    assert 0.01 < dark.mean() < 0.5
    assert dark[:192, :].any(axis=0).argmax() < 100  # the upper arm lies to the left
    with pytest.raises(DataError, match="at least one"):
        render_grid(noise(0, 4, 4, 1))


def test_png_carries_its_texts_and_is_whole(tmp_path: Path):
    path = tmp_path / "a.png"
    image = to_image(noise(4, 4, 1, high=65536), levels=65536)
    save_png(image, path, {"seed": "7", "recipe": '{"näme": "图"}'})
    with Image.open(path) as again:
        assert again.mode == "I;16"
        assert again.text == {"seed": "7", "recipe": '{"näme": "图"}'}
        np.testing.assert_array_equal(np.asarray(again), np.asarray(image))
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.png"]


def test_png_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "a.png"
    save_png(to_image(noise(4, 4, 3)), path)
    before = path.read_bytes()

    def full(self, file: Path, *args: object, **kwargs: object) -> None:
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(RunError, match=r"a\.png': No space left"):
        save_png(to_image(noise(4, 4, 3, seed=1)), path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.png"]
    with pytest.raises(RunError, match="cannot write the picture"):
        save_png(to_image(noise(4, 4, 3)), path / "below-a-file" / "a.png")


def test_sparkline_shows_empty_and_full_bins():
    assert sparkline(np.array([0, 1, 4, 16]), width=4) == " ▂▄█"
    assert len(sparkline(np.arange(256))) == 32
