"""The worst folder: what is a picture loads as documented, the rest is listed by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torture_folder import SIDE, make_torture_folder

from ddpm.config import DataConfig
from ddpm.data import inspect, open_store, render_grid
from ddpm.errors import DataError

CONFIG = DataConfig(size=(SIDE, SIDE), max_bad_share=0.5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory):
    path = tmp_path_factory.mktemp("torture")
    return path, *make_torture_folder(path)


@pytest.fixture(scope="module")
def store(folder, tmp_path_factory: pytest.TempPathFactory):
    return open_store(folder[0], CONFIG, cache_dir=tmp_path_factory.mktemp("cache"))


def test_every_picture_equals_its_reference(folder, store):
    good = folder[1]
    assert sorted(store.names) == sorted(good)
    for name, picture in zip(store.names, store.pictures, strict=True):
        difference = np.abs(picture.astype(int) - good[name].astype(int)).max()
        assert difference == 0, f"{name} differs by {difference}"


def test_the_rest_is_listed_with_its_reason(folder, store):
    _, _, bad, ignored = folder
    listed = dict(store.report.bad)
    assert set(listed) == set(bad)
    for name, words in bad.items():
        assert words in listed[name]
        assert listed[name]
    assert store.report.ignored == ignored
    assert store.report.seen == len(folder[1]) + len(bad) + sum(ignored.values())
    assert store.report.used == len(folder[1])


def test_conversions_are_reported(store):
    text = "\n".join(store.report.conversions)
    for words in ("composited on white", "palette looked up", "CMYK converted to RGB", "uint16 rounded to uint8"):
        assert words in text
    for words in ("EXIF", "first frame", "enlarged", "gray repeated to RGB"):
        assert words in text
    assert any("several depths" in note for note in store.report.notes)
    assert store.report.size_rule.startswith("16x16 as asked for")


def test_inspection_names_the_trouble(store):
    found = inspect(store)
    warnings = "\n".join(found.warnings)
    assert "4 files are left out" in warnings
    assert "few" in warnings
    assert ("bmp/rgb.BMP", "copies/copy.png", "lossless.webp", "rgb.png") in found.duplicates
    assert "one single colour, such as 1x1.png" in warnings
    assert "enlarg" in warnings
    assert render_grid(store.pictures).mode == "RGB"


def test_default_policy_stops_above_a_fifth(folder, tmp_path: Path):
    few = tmp_path / "few"
    few.mkdir()
    for name in ("rgb.png", "gray.PNG", "rgba.png", "text.png"):
        (few / name).write_bytes((folder[0] / name).read_bytes())
    with pytest.raises(DataError, match=r"1 of 4 pictures.*20%.*text\.png \(not a picture"):
        open_store(few, DataConfig(), cache_dir=tmp_path / "cache")
    with pytest.raises(DataError, match=r"text\.png .*on_bad_file=skip"):
        open_store(few, DataConfig(on_bad_file="fail", max_bad_share=1.0), cache_dir=tmp_path / "cache")
    assert len(open_store(few, DataConfig(max_bad_share=0.25), cache_dir=tmp_path / "cache")) == 3


def test_policy_holds_for_a_cached_store_too(folder, tmp_path: Path):
    open_store(folder[0], CONFIG, cache_dir=tmp_path)
    with pytest.raises(DataError, match="max_bad_share"):
        open_store(folder[0], CONFIG.model_copy(update={"max_bad_share": 0.01}), cache_dir=tmp_path)


def test_a_bomb_is_listed_and_nothing_is_printed(folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn):
    for name in ("rgb.png", "gray.PNG", "rgba.png", "one-bit.png"):
        (tmp_path / name).write_bytes((folder[0] / name).read_bytes())
    Image.new("1", (2000, 2000)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3_000_000)
    store = open_store(tmp_path, DataConfig(), cache_dir=tmp_path / ".cache")
    (bad,) = store.report.bad
    assert bad[0] == "bomb.png"
    assert "decompression bomb" in bad[1]
    assert not recwarn.list
