"""Parquet files, and data sets of the Hub."""

from __future__ import annotations

from pathlib import Path

import datasets
import pytest
from containers import (
    COUNT,
    LABELS,
    PNGS,
    dataset,
    make_parquet,
    replace_hub,
    write,
)

from ddpm.config import DataConfig
from ddpm.data import open_store
from ddpm.errors import DataError


@pytest.fixture(autouse=True)
def _hub(no_network: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    replace_hub(monkeypatch, tmp_path)


def test_parquet_splits_and_captions(tmp_path: Path):
    folder = make_parquet(tmp_path)
    dataset().select(range(2)).to_parquet(folder / "test-00000-of-00001.parquet")
    store = open_store(folder, DataConfig(), cache_dir=tmp_path / "cache")
    assert len(store.train) == 6
    assert len(store.held_out) == 2
    assert store.captions is not None
    assert store.captions[0] == "a cat"
    leftovers = [path for path in (tmp_path / "cache").rglob("*") if path.suffix == ".arrow"]
    assert not leftovers


def test_one_parquet_file_with_plain_bytes(tmp_path: Path):
    rows = {"img": PNGS, "class": LABELS, "weight": [0.5] * COUNT}
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "a.parquet")
    store = open_store(tmp_path / "a.parquet", DataConfig(), cache_dir=tmp_path / "cache")
    assert store.classes == ("cat", "dog")
    assert store.numbers["weight"].tolist() == [0.5] * COUNT


def test_parquet_rows_without_a_picture_are_bad(tmp_path: Path):
    datasets.Dataset.from_dict({"image": [*PNGS, None]}).to_parquet(tmp_path / "a.parquet")
    store = open_store(tmp_path / "a.parquet", DataConfig(), cache_dir=tmp_path / "cache")
    assert store.report.bad == (("train row 6", "no picture in this row"),)


def test_parquet_never_opens_files_that_it_names(tmp_path: Path):
    secret = write(tmp_path / "d", "secret.png") / "secret.png"
    rows = [{"bytes": data, "path": None} for data in PNGS] + [{"bytes": None, "path": str(secret)}]
    datasets.Dataset.from_dict({"image": rows}).to_parquet(tmp_path / "a.parquet")
    store = open_store(tmp_path / "a.parquet", DataConfig(), cache_dir=tmp_path / "cache")
    assert len(store) == COUNT


def test_parquet_without_pictures(tmp_path: Path):
    datasets.Dataset.from_dict({"image": ["a.png"], "n": [1]}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"column 'image' holds no encoded pictures.*image, n"):
        open_store(tmp_path / "a.parquet", DataConfig(), cache_dir=tmp_path / "cache")


def test_missing_labels_drop_all_with_a_note(tmp_path: Path):
    rows = {"image": PNGS, "label": ["a", None, "b", "a", "b", "a"]}
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "a.parquet")
    store = open_store(tmp_path / "a.parquet", DataConfig(), cache_dir=tmp_path / "cache")
    assert store.labels is None
    assert "1 picture has no label, so none is used" in store.report.notes


def test_hub_errors_name_the_data_set(tmp_path: Path):
    with pytest.raises(DataError, match=r"nobody/nothing.*doesn't exist on the Hub.*check its name"):
        open_store("hf:nobody/nothing", DataConfig(), cache_dir=tmp_path)


def test_folder_does_not_hide_a_hub_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write(tmp_path / "nobody" / "pictures", "a.png")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="lies here and hides it"):
        open_store("hf:nobody/pictures", DataConfig(), cache_dir=tmp_path / "cache")
