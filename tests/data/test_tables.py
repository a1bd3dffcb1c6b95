"""Tables of paths: columns, splits, and tables that make no sense."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from containers import (
    COUNT,
    LABELS,
    MEMBERS,
    make_table,
    png_folder,
)

from ddpm.config import DataConfig
from ddpm.data import open_store
from ddpm.errors import DataError

pytestmark = pytest.mark.usefixtures("no_network")


def test_table_columns_are_found(tmp_path: Path):
    store = open_store(make_table(tmp_path), DataConfig(), cache_dir=tmp_path / "cache")
    assert store.captions is not None
    assert list(store.captions) == [f"a {label}" for label in LABELS]
    np.testing.assert_array_equal(store.numbers["age"], np.arange(COUNT) / 2)
    assert store.classes == ("cat", "dog")


def test_jsonl_and_a_folder_with_metadata(tmp_path: Path):
    folder = png_folder(tmp_path / "d")
    rows = [{"file_name": name, "text": "x", "score": i} for i, name in enumerate(MEMBERS)]
    rows[2] |= {"score": None}
    (folder / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    store = open_store(folder, DataConfig(), cache_dir=tmp_path / "cache")
    assert store.labels is None
    assert store.captions is not None
    assert np.isnan(store.numbers["score"][2])
    assert store.numbers["score"][5] == 5


def test_table_with_missing_files_lists_them(tmp_path: Path):
    table = make_table(tmp_path)
    (tmp_path / "pictures" / MEMBERS[1]).unlink()
    store = open_store(table, DataConfig(), cache_dir=tmp_path / "cache")
    assert store.report.bad == ((f"pictures/{MEMBERS[1]}", "No such file or directory"),)


def test_table_with_splits_semicolons_and_a_mark(tmp_path: Path):
    png_folder(tmp_path)
    lines = [f"{name};{'train' if i < 4 else 'val'}" for i, name in enumerate(MEMBERS)]
    (tmp_path / "list.csv").write_text("\ufeffImage Path;Split\n" + "\n".join(lines), encoding="utf-8")
    store = open_store(tmp_path / "list.csv", DataConfig(), cache_dir=tmp_path / "cache")
    assert store.held_out.tolist() == [4, 5]


@pytest.mark.parametrize(
    ("name", "text", "config", "words"),
    [
        ("a.csv", "name,age\nx,1\n", {}, "no column of picture paths.*name, age"),
        ("a.csv", "", {}, "empty"),
        ("a.jsonl", "", {}, "empty"),
        ("a.jsonl", '{"path": "x.png"}\n[1]\n', {}, "line 2 is a JSON list"),
        ("a.jsonl", '{"path": "x.png"}\n{oops\n', {}, "line 2 is no JSON"),
        ("a.csv", "path,label\nx.png,1\n", {"label_column": "lable"}, "lable.*did you mean 'label'"),
        ("a.csv", "path,label\nx.png,1\n", {"picture_column": "pth"}, "picture_column.*did you mean 'path'"),
    ],
)
def test_tables_that_make_no_sense(name, text, config, words, tmp_path: Path):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=words):
        open_store(tmp_path / name, DataConfig(**config), cache_dir=tmp_path / "cache")


def test_latin_1_table_is_refused(tmp_path: Path):
    (tmp_path / "a.csv").write_bytes("path,label\nx.png,Grün\n".encode("latin-1"))
    with pytest.raises(DataError, match="UTF-8"):
        open_store(tmp_path / "a.csv", DataConfig(), cache_dir=tmp_path / "cache")
