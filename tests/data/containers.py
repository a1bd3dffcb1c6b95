"""The same six pictures of cats and dogs in a container of every kind."""

from __future__ import annotations

import csv
import io
import tarfile
import zipfile
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image
from torture_folder import encode, noise

from ddpm.data.sources.archive import TarSource, ZipSource
from ddpm.data.sources.arrays import ArraySource
from ddpm.data.sources.embedded import EmbeddedSource
from ddpm.data.sources.folder import FolderSource
from ddpm.data.sources.parquet import HubSource, ParquetSource
from ddpm.data.sources.points import PointsSource
from ddpm.data.sources.table import TableSource

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


def write(folder: Path, *names: str) -> Path:
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(PNGS[i % COUNT])
    return folder


def replace_hub(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Let the Hub hold one data set, made here, and miss another; any other name is asked for as ever."""
    real = datasets.load_dataset

    def load(name, *args, **kwargs):
        if name == "nobody/pictures":
            saved = folder / "hub"
            if not saved.exists():
                dataset().save_to_disk(saved)
            return {"train": datasets.load_from_disk(saved)}
        if name == "nobody/nothing":
            raise FileNotFoundError(f"Dataset '{name}' doesn't exist on the Hub")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(datasets, "load_dataset", load)
