"""Folders: classes, splits and what is in the way."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from containers import (
    make_zip,
    write,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from ddpm.config import DataConfig
from ddpm.data import open_store
from ddpm.data.sources.layout import read_layout
from ddpm.errors import DataError

pytestmark = pytest.mark.usefixtures("no_network")


@pytest.mark.parametrize(
    ("names", "classes", "words"),
    [
        (["a.png", "b.png"], (), "flat"),
        (["x/a.png", "x/b.png"], (), "flat"),
        (["x/a.png", "y/b.png"], ("x", "y"), "2 classes"),
        (["deep/down/x/a.png", "deep/down/y/b.png"], ("x", "y"), "2 classes"),
        (["x/a.png", "y/b.png", "c.png"], (), "nested"),
        (["x/a.png", "y/z/b.png"], (), "nested"),
        (["10/a.png", "9/a.png", "100/a.png"], ("9", "10", "100"), "3 classes"),
    ],
)
def test_classes_follow_the_layout(names, classes, words, tmp_path: Path):
    store = open_store(write(tmp_path / "d", *names), DataConfig(), cache_dir=tmp_path / "cache")
    assert store.classes == classes
    assert (store.labels is None) == (not classes)
    assert any(words in note for note in store.report.notes)


NAMES = st.lists(st.text("ab.xT", min_size=1, max_size=3), min_size=1, max_size=4).map("/".join)


@given(st.lists(NAMES, max_size=12, unique=True))
@settings(max_examples=200, deadline=None)
def test_any_layout_has_one_reading(names):
    layout = read_layout(names)
    assert (layout.labels is None) == (not layout.classes)
    if layout.labels is not None:
        assert len(layout.labels) == len(names)
        assert set(layout.labels) == set(layout.classes)
        assert len(layout.classes) >= 2
        depths = {name.count("/") for name in names}
        assert len(depths) == 1
    wrapped = read_layout([f"outer/{name}" for name in names])
    assert (wrapped.labels, wrapped.splits, wrapped.classes) == (layout.labels, layout.splits, layout.classes)


def test_split_folders_are_splits(tmp_path: Path):
    names = [f"{split}/{label}/{i}.png" for split in ("train", "test") for label in "ab" for i in range(2)]
    store = open_store(write(tmp_path / "d", *names), DataConfig(), cache_dir=tmp_path / "cache")
    assert store.classes == ("a", "b")
    assert {store.names[i].split("/")[0] for i in store.train} == {"train"}
    assert {store.names[i].split("/")[0] for i in store.held_out} == {"test"}


def test_validation_is_held_out_before_test(tmp_path: Path):
    names = [f"{split}/{i}.png" for split in ("train", "val", "test") for i in range(2)]
    store = open_store(write(tmp_path / "d", *names), DataConfig(), cache_dir=tmp_path / "cache")
    assert [store.names[i] for i in store.held_out] == ["val/0.png", "val/1.png"]
    assert store.report.ignored == {"unused splits": 2}


def test_folder_without_pictures_says_what_is_there(tmp_path: Path):
    write(tmp_path, "a.png")
    folder = tmp_path / "sub"
    folder.mkdir()
    for name in ("a.heic", "b.HEIC", "c.txt", ".hidden"):
        (folder / name).write_bytes(b"x")
    with pytest.raises(DataError) as caught:
        open_store(folder, DataConfig(), cache_dir=tmp_path / "cache")
    text = str(caught.value)
    for words in (str(folder), "4 files seen", "2 .heic", "1 .txt", "1 hidden file", "one level up, holds 1 picture"):
        assert words in text
    assert "\n" not in text
    assert not list((tmp_path / "cache" / "stores").iterdir())


def test_folder_that_holds_an_archive_points_to_it(tmp_path: Path):
    make_zip(tmp_path)
    with pytest.raises(DataError, match=r"a\.zip': give that file itself"):
        open_store(tmp_path, DataConfig(), cache_dir=tmp_path / "cache")


def test_only_broken_pictures_is_an_error(tmp_path: Path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a.png").write_bytes(b"junk")
    with pytest.raises(DataError, match=r"none of the 1 picture files.*a\.png \(not a picture"):
        open_store(tmp_path / "d", DataConfig(), cache_dir=tmp_path / "cache")


def test_one_picture_is_too_few(tmp_path: Path):
    with pytest.raises(DataError, match="1 readable picture; at least 2"):
        open_store(write(tmp_path / "d", "a.png"), DataConfig(), cache_dir=tmp_path / "cache")


def test_link_circles_end_and_linked_folders_count_once(tmp_path: Path):
    folder = write(tmp_path / "d", "a.png", "b.png")
    (folder / "x").mkdir()
    os.symlink(folder, folder / "x" / "up")
    os.symlink(folder / "x", folder / "y")
    assert len(open_store(folder, DataConfig(), cache_dir=tmp_path / "cache")) == 2
