"""Real data sets, found through ``DDPM_DATA``; skipped where they are not."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddpm.config import DataConfig
from ddpm.data import inspect, open_store

ROOT = os.environ.get("DDPM_DATA")
pytestmark = pytest.mark.skipif(not ROOT, reason="DDPM_DATA names no folder with mnist, cifar10, emoji and clothing")


def data(name: str) -> Path:
    path = Path(ROOT or "") / name
    if not path.exists():
        pytest.skip(f"no {name} in DDPM_DATA")
    return path


def test_photographs_in_class_folders(tmp_path: Path):
    folder = data("clothing")
    store = open_store(folder, DataConfig(size=(64, 64)), cache_dir=tmp_path)
    assert store.pictures.shape == (160, 64, 64, 3)
    assert len(store.classes) == 10
    assert store.report.bad == ()
    for i in (0, 80, 159):
        with Image.open(folder / store.names[i]) as image:
            side = min(image.size)
            left, top = (image.width - side) // 2, (image.height - side) // 2
            square = image.convert("RGB").crop((left, top, left + side, top + side))
            expected = square.resize((64, 64), Image.Resampling.LANCZOS)
        np.testing.assert_array_equal(store.pictures[i], np.asarray(expected))
        assert store.names[i].startswith(store.classes[store.labels[i]] + "/")
    assert "learn them by heart" in inspect(store).warnings[0]


def test_emoji_with_captions(tmp_path: Path):
    store = open_store(data("emoji"), DataConfig(), cache_dir=tmp_path)
    assert store.pictures.shape == (1633, 64, 64, 3)
    assert store.captions is not None
    assert all(store.captions)
    assert store.labels is None


@pytest.mark.slow
@pytest.mark.parametrize(("name", "shape"), [("mnist", (70_000, 28, 28, 1)), ("cifar10", (60_000, 32, 32, 3))])
def test_parquet_with_splits(name: str, shape: tuple[int, ...], tmp_path: Path):
    store = open_store(data(name), DataConfig(), cache_dir=tmp_path)
    assert store.pictures.shape == shape
    assert len(store.held_out) == 10_000
    assert len(store.classes) == 10
    assert store.labels is not None
    assert np.bincount(store.labels[store.held_out]).min() > 800
