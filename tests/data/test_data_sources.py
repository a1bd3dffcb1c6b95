"""One contract for every kind of source, and names that mean nothing."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets
import numpy as np
import pytest
from containers import (
    LABELS,
    MAKERS,
    PICTURES,
    replace_hub,
    write,
)

from ddpm.config import DataConfig
from ddpm.data import open_store
from ddpm.data.sources import SOURCES, resolve
from ddpm.data.sources.embedded import EmbeddedSource
from ddpm.data.sources.folder import FolderSource
from ddpm.data.sources.parquet import HubSource
from ddpm.data.sources.points import PointsSource
from ddpm.errors import DataError


@pytest.fixture(autouse=True)
def _hub(no_network: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    replace_hub(monkeypatch, tmp_path)


def test_every_source_has_a_maker_here():
    assert {*SOURCES, EmbeddedSource, HubSource} == set(MAKERS)


@pytest.mark.parametrize("kind", MAKERS, ids=lambda kind: kind.__name__)
def test_contract(kind, tmp_path: Path):
    name = MAKERS[kind](tmp_path)
    source = resolve(name, DataConfig())
    assert type(source) is kind
    stamp = list(source.stamp())
    assert stamp
    assert stamp == list(resolve(name, DataConfig()).stamp())
    (tmp_path / "scratch").mkdir()
    source.prepare(tmp_path / "scratch")
    first, second = list(source.examples()), list(source.examples())
    assert len(first) == len(second) == len(source)
    assert source.facts.seen >= len(source)
    for a, b in zip(first, second, strict=True):
        assert (a.name, a.label, a.caption, a.split, a.numbers) == (b.name, b.label, b.caption, b.split, b.numbers)

    def content(example):
        opened = example.open()
        if isinstance(opened, np.ndarray):
            return opened.tobytes()
        with opened:
            return opened.read()

    with ThreadPoolExecutor(4) as pool:  # pictures are opened from several threads, in any order
        assert list(pool.map(content, first)) == [content(example) for example in second]
    source.close()
    source.close()


@pytest.mark.parametrize("kind", MAKERS, ids=lambda kind: kind.__name__)
def test_store_of_every_source(kind, tmp_path: Path):
    name = MAKERS[kind](tmp_path)
    store = open_store(name, DataConfig(), cache_dir=tmp_path / "cache")
    count = len(store)
    assert store.pictures.ndim == 4
    assert not store.pictures.flags.writeable
    assert sorted([*store.train, *store.held_out]) == list(range(count))
    assert len(store.held_out) >= 1
    assert store.train.dtype == store.held_out.dtype == np.int64
    assert store.labels is not None
    assert store.labels.dtype == np.int64
    assert len(store.names) == len(store.labels) == count == store.report.used
    assert 0 <= store.labels.min() <= store.labels.max() < len(store.classes)
    assert len(store.fingerprint) == 64
    again = open_store(name, DataConfig(), cache_dir=tmp_path / "cache")
    assert again.fingerprint == store.fingerprint
    assert again.report.from_cache == (kind not in (EmbeddedSource, PointsSource))
    np.testing.assert_array_equal(again.pictures, store.pictures)
    np.testing.assert_array_equal(again.held_out, store.held_out)


PICTURE_KINDS = [kind for kind in MAKERS if kind not in (EmbeddedSource, PointsSource)]


@pytest.mark.parametrize("kind", PICTURE_KINDS, ids=lambda kind: kind.__name__)
def test_the_same_pictures_come_out_of_every_container(kind, tmp_path: Path):
    store = open_store(MAKERS[kind](tmp_path), DataConfig(), cache_dir=tmp_path / "cache")
    assert store.classes == ("cat", "dog")
    assert (store.levels, store.value_range) == (256, (0.0, 255.0))
    found = {
        picture.tobytes(): store.classes[label] for picture, label in zip(store.pictures, store.labels, strict=True)
    }
    assert found == {picture.tobytes(): label for picture, label in zip(PICTURES, LABELS, strict=True)}


def test_names_resolve_in_the_stated_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert isinstance(resolve("digits", DataConfig()), EmbeddedSource)
    assert isinstance(resolve("nobody/pictures", DataConfig()), HubSource)
    assert isinstance(resolve("hf:nobody/pictures", DataConfig()), HubSource)
    write(tmp_path / "digits", "a.png")
    assert isinstance(resolve("digits", DataConfig()), FolderSource)
    write(tmp_path / "nobody", "a.png")
    with pytest.raises(DataError, match="hf:nobody/pictures"):
        resolve("nobody/pictures", DataConfig())


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("photos/catz", "did you mean 'photos/cats'"),
        ("photo/cats", "did you mean 'photos'"),
        ("./photoz", "did you mean 'photos'"),
        ("/nowhere/at/all", ""),
        ("digit", "did you mean 'digits'"),
        ("swiss-roll", "did you mean 'swissroll'"),
        ("a/b/c", ""),
        ("data/pictures.zip", ""),
        ("hf:oops", "expected hf:owner/name"),
        ("hf:../up", "expected hf:owner/name"),
        ("", "empty"),
        ("x" * 5000, ""),
        ("nul\0byte", ""),
    ],
)
def test_missing_paths_never_reach_the_network(name, hint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write(tmp_path / "photos" / "cats", "a.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: pytest.fail("a mistyped path reached the network"))
    with pytest.raises(DataError) as caught:
        open_store(name, DataConfig(), cache_dir=tmp_path / "cache")
    assert hint in str(caught.value)
    assert name in str(caught.value)
    assert "expected" in str(caught.value)
    assert not (tmp_path / "cache").exists()


def test_a_file_of_no_kind(tmp_path: Path):
    (tmp_path / "a.docx").write_bytes(b"x")
    with pytest.raises(DataError, match=r"a\.docx' is not a kind of data.*expected a folder"):
        open_store(tmp_path / "a.docx", DataConfig(), cache_dir=tmp_path / "cache")
