"""Arrays: axes, ranges and splits; points in the plane, and the embedded digits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from torture_folder import noise

from ddpm.config import DataConfig
from ddpm.data import open_store
from ddpm.errors import DataError

pytestmark = pytest.mark.usefixtures("no_network")


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((5, 8, 9), (8, 9, 1)), ((5, 8, 9, 3), (8, 9, 3)), ((5, 3, 8, 9), (8, 9, 3)), ((5, 3, 8, 3), (3, 8, 3))],
)
def test_axes_of_arrays(shape, expected, tmp_path: Path):
    values = noise(*shape)
    np.save(tmp_path / "a.npy", values)
    config = DataConfig() if min(expected[:2]) >= 4 else DataConfig(size=(4, 8))
    store = open_store(tmp_path / "a.npy", config, cache_dir=tmp_path / "cache")
    if config.size is None:
        assert store.pictures.shape[1:] == expected
    if shape == (5, 3, 8, 9):
        np.testing.assert_array_equal(store.pictures, values.transpose(0, 2, 3, 1))
    assert any("read as" in note for note in store.report.notes)


@pytest.mark.parametrize(
    ("values", "levels", "value_range"),
    [
        (noise(4, 8, 8, high=65536), 65536, (0, 65535)),
        (noise(4, 8, 8).astype(">u2"), 65536, (0, 65535)),
        (noise(4, 8, 8) > 100, 256, (0, 255)),
        (noise(4, 8, 8) / 255, None, (0, 1)),
        (noise(4, 8, 8) / 127.5 - 1, None, (-1, 1)),
        (noise(4, 8, 8).astype(np.float32), None, (0, 255)),
        (np.linspace(-7, 9, 256).reshape(4, 8, 8), None, (-7, 9)),
    ],
)
def test_range_of_arrays(values, levels, value_range, tmp_path: Path):
    np.save(tmp_path / "a.npy", values)
    store = open_store(tmp_path / "a.npy", DataConfig(), cache_dir=tmp_path / "cache")
    assert store.levels == levels
    assert store.value_range == value_range
    np.testing.assert_allclose(store.pictures[..., 0] / (255 if values.dtype == bool else 1), values, rtol=1e-6)


def test_npz_with_splits(tmp_path: Path):
    arrays = {"x_train": noise(4, 8, 8), "y_train": np.arange(4), "x_test": noise(3, 8, 8), "y_test": np.arange(3)}
    np.savez(tmp_path / "a.npz", **arrays)
    store = open_store(tmp_path / "a.npz", DataConfig(), cache_dir=tmp_path / "cache")
    assert len(store.train) == 4
    assert len(store.held_out) == 3
    assert store.classes == ("0", "1", "2", "3")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (noise(4, 8, 8).astype(np.int64), "int64.*uint8"),
        (noise(4, 8, 8, 7), r"\[4, 8, 8, 7\]"),
        (noise(4), r"\[4\]"),
        (np.array([{"a": 1}], dtype=object), "pickled"),
    ],
)
def test_arrays_that_are_no_pictures(values, words, tmp_path: Path):
    np.save(tmp_path / "a.npy", values, allow_pickle=True)
    with pytest.raises(DataError, match=words):
        open_store(tmp_path / "a.npy", DataConfig(), cache_dir=tmp_path / "cache")


def test_npz_with_wrong_labels(tmp_path: Path):
    np.savez(tmp_path / "a.npz", images=noise(4, 8, 8), labels=np.arange(3))
    with pytest.raises(DataError, match=r"3.*for 4 pictures"):
        open_store(tmp_path / "a.npz", DataConfig(), cache_dir=tmp_path / "cache")


@pytest.mark.parametrize("text", ["1,2\n3,4\n5,-6\n", "x,y\n1,2\n3,4\n5,-6\n", "a;b\n1;2\n3;4\n5;-6\n"])
def test_points_from_csv(text: str, tmp_path: Path):
    (tmp_path / "p.csv").write_text(text)
    store = open_store(tmp_path / "p.csv", DataConfig(), cache_dir=tmp_path / "cache")
    assert store.pictures.reshape(-1, 2).tolist() == [[1, 2], [3, 4], [5, -6]]
    assert store.pictures.dtype == np.float32
    assert (store.value_range, store.levels) == ((-6, 5), None)


def test_points_skip_rows_that_are_none(tmp_path: Path):
    (tmp_path / "p.csv").write_text("x,y\n" + "1,2\n" * 8 + "3,\nnan,1\n")
    store = open_store(tmp_path / "p.csv", DataConfig(), cache_dir=tmp_path / "cache")
    assert len(store) == 8
    assert [name for name, _ in store.report.bad] == ["row 9", "row 10"]


@pytest.mark.parametrize("name", ["swissroll", "moons", "spirals"])
def test_generated_points(name: str):
    store = open_store(name, DataConfig())
    assert store.pictures.shape[1:] == (1, 1, 2)
    assert store.value_range == (-1.0, 1.0)
    assert 0.8 < np.abs(store.pictures).max() < 1.0
    assert (len(store.train), len(store.held_out)) == (9000, 1000)
    np.testing.assert_array_equal(store.pictures, open_store(name, DataConfig()).pictures)


def test_digits_are_the_stated_split():
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    store = open_store("digits", DataConfig())
    digits = load_digits()
    train, held = train_test_split(np.arange(1797), test_size=360, stratify=digits.target, random_state=0)
    assert store.pictures.shape == (1797, 8, 8, 1)
    assert store.pictures.dtype == np.uint8
    np.testing.assert_array_equal(store.pictures[..., 0], digits.images)
    np.testing.assert_array_equal(store.labels, digits.target)
    assert sorted(train) == store.train.tolist()
    assert sorted(held) == store.held_out.tolist()
    assert (store.levels, store.value_range) == (17, (0.0, 16.0))


def test_scaled_digits_use_the_full_range():
    store = open_store("digits", DataConfig(size=(16, 16)))
    assert store.pictures.shape == (1797, 16, 16, 1)
    assert (store.levels, store.value_range) == (256, (0.0, 255.0))
    assert store.pictures.max() == 255
