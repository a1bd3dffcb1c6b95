"""One contract for every kind of source, then what is special to each, and names that mean nothing."""

from __future__ import annotations

import csv
import io
import json
import os
import socket
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torture_folder import encode, noise

from ddpm.config import DataConfig
from ddpm.data import open_store
from ddpm.data.sources import SOURCES, resolve
from ddpm.data.sources.archive import TarSource, ZipSource
from ddpm.data.sources.arrays import ArraySource
from ddpm.data.sources.embedded import EmbeddedSource
from ddpm.data.sources.folder import FolderSource
from ddpm.data.sources.layout import read_layout
from ddpm.data.sources.parquet import HubSource, ParquetSource
from ddpm.data.sources.points import PointsSource
from ddpm.data.sources.table import TableSource
from ddpm.errors import DataError

COUNT = 6
PICTURES = [noise(8, 10, 3, seed=i) for i in range(COUNT)]
LABELS = ["cat", "dog"] * (COUNT // 2)
PNGS = [encode(Image.fromarray(picture), "PNG") for picture in PICTURES]
MEMBERS = [f"{label}/{i}.png" for i, label in enumerate(LABELS)]


def png_folder(path: Path) -> Path:
    for name, data in zip(MEMBERS, PNGS, strict=True):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def make_folder(tmp: Path) -> Path:
    return png_folder(tmp / "folder")


def make_zip(tmp: Path) -> Path:
    with zipfile.ZipFile(tmp / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in zip(MEMBERS, PNGS, strict=True):
            archive.writestr(f"all/{name}", data)
    return tmp / "a.zip"


def add_to_tar(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))


def make_tar(tmp: Path) -> Path:
    with tarfile.open(tmp / "a.tar.gz", "w:gz") as archive:
        for name, data in zip(MEMBERS, PNGS, strict=True):
            add_to_tar(archive, f"./all/{name}", data)
    return tmp / "a.tar.gz"


def make_arrays(tmp: Path) -> Path:
    np.savez(tmp / "a.npz", images=np.stack(PICTURES), labels=np.array(LABELS))
    return tmp / "a.npz"


def make_points(tmp: Path) -> Path:
    rows = "".join(f"{i},{-i * 0.5},{label}\n" for i, label in enumerate(LABELS))
    (tmp / "points.csv").write_text("x,y,label\n" + rows)
    return tmp / "points.csv"


def make_table(tmp: Path) -> Path:
    png_folder(tmp / "pictures")
    with open(tmp / "list.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "label", "text", "age"])
        for i, (name, label) in enumerate(zip(MEMBERS, LABELS, strict=True)):
            writer.writerow([f"pictures/{name}", label, f"a {label}", i / 2])
    return tmp / "list.csv"


def dataset() -> datasets.Dataset:
    features = datasets.Features(
        image=datasets.Image(), label=datasets.ClassLabel(names=["cat", "dog"]), text=datasets.Value("string")
    )
    images = [{"bytes": data, "path": None} for data in PNGS]
    texts = [f"a {label}" for label in LABELS]
    return datasets.Dataset.from_dict({"image": images, "label": LABELS, "text": texts}, features=features)


def make_parquet(tmp: Path) -> Path:
    (tmp / "parquet").mkdir()
    dataset().to_parquet(tmp / "parquet" / "train-00000-of-00001.parquet")
    return tmp / "parquet"


def make_embedded(tmp: Path) -> str:
    return "digits"


def make_hub(tmp: Path) -> str:
    return "hf:nobody/pictures"


MAKERS = {
    FolderSource: make_folder,
    ZipSource: make_zip,
    TarSource: make_tar,
    ArraySource: make_arrays,
    PointsSource: make_points,
    TableSource: make_table,
    ParquetSource: make_parquet,
    EmbeddedSource: make_embedded,
    HubSource: make_hub,
}


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Fail at any connection; the Hub is replaced by a data set made here."""

    def refuse(*args: object) -> None:
        raise AssertionError("this test reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    real = datasets.load_dataset

    def load(name, *args, **kwargs):
        if name == "nobody/pictures":
            saved = tmp_path / "hub"
            if not saved.exists():
                dataset().save_to_disk(saved)
            return {"train": datasets.load_from_disk(saved)}
        if name == "nobody/nothing":
            raise FileNotFoundError(f"Dataset '{name}' doesn't exist on the Hub")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(datasets, "load_dataset", load)


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


# ---- folders and layouts


def write(folder: Path, *names: str) -> Path:
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(PNGS[i % COUNT])
    return folder


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


# ---- archives


def test_members_that_try_to_escape_are_ignored(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        for name in ("../out.png", "/abs.png", "a/../../b.png", "C:/c.png", "ok/1.png", "ok/2.png"):
            archive.writestr(name, PNGS[0])
    before = sorted(tmp_path.rglob("*"))
    store = open_store(tmp_path / "evil.zip", DataConfig(), cache_dir=tmp_path / "cache")
    assert sorted(store.names) == ["ok/1.png", "ok/2.png"]
    assert store.report.ignored == {"unsafe names": 4}
    outside = [path for path in sorted(tmp_path.rglob("*")) if tmp_path / "cache" not in [path, *path.parents]]
    assert outside == before


def test_links_and_devices_in_a_tar_are_ignored(tmp_path: Path):
    with tarfile.open(tmp_path / "evil.tar", "w") as archive:
        for name, kind in (("l.png", tarfile.SYMTYPE), ("h.png", tarfile.LNKTYPE), ("f.png", tarfile.FIFOTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
        add_to_tar(archive, "../up.png", PNGS[0])
        add_to_tar(archive, "1.png", PNGS[1])
        add_to_tar(archive, "2.png", PNGS[2])
    store = open_store(tmp_path / "evil.tar", DataConfig(), cache_dir=tmp_path / "cache")
    assert list(store.names) == ["1.png", "2.png"]
    assert store.report.ignored == {"links": 3, "unsafe names": 1}


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz", "a.npz", "a.npy", "a.parquet"])
def test_damaged_containers_are_named(name: str, tmp_path: Path):
    (tmp_path / name).write_bytes(b"\x1f\x8b this is nothing of the kind" * 20)
    with pytest.raises(DataError, match=name.replace(".", r"\.")) as caught:
        open_store(tmp_path / name, DataConfig(), cache_dir=tmp_path / "cache")
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "cache" / "stores").iterdir())


def test_damaged_member_is_a_bad_file(tmp_path: Path):
    data = bytearray(make_zip(tmp_path).read_bytes())
    at = data.find(PNGS[2][60:90])
    at = at if at > 0 else len(data) // 2
    data[at] ^= 0xFF
    (tmp_path / "b.zip").write_bytes(bytes(data))
    store = open_store(tmp_path / "b.zip", DataConfig(max_bad_share=0.5), cache_dir=tmp_path / "cache")
    assert len(store) == COUNT - 1
    assert len(store.report.bad) == 1


# ---- tables


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


# ---- arrays and points


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


# ---- parquet and the Hub


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


# ---- names


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
